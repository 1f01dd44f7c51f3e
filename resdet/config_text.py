"""The former home of names in `resdet.config`."""

from resdet.config.io import _keys as _keys
from resdet.config.io import dump_config as dump_config
from resdet.config.io import find_config as find_config
from resdet.config.io import load_config as load_config
from resdet.config.io import load_yaml as load_yaml
from resdet.config.io import parse_config as parse_config
