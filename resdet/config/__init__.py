"""The configuration: its typed sections (`schema`), YAML text to and from them (`io`), what `auto` chooses (`auto`)."""

from resdet.config.io import dump_config as dump_config
from resdet.config.io import dump_settings as dump_settings
from resdet.config.io import find_config as find_config
from resdet.config.io import load_config as load_config
from resdet.config.io import load_yaml as load_yaml
from resdet.config.io import parse_config as parse_config
from resdet.config.io import settings_of as settings_of
from resdet.config.schema import AnchorConfig as AnchorConfig
from resdet.config.schema import BackboneConfig as BackboneConfig
from resdet.config.schema import BoxConfig as BoxConfig
from resdet.config.schema import Config as Config
from resdet.config.schema import DataConfig as DataConfig
from resdet.config.schema import DataFormat as DataFormat
from resdet.config.schema import FPNConfig as FPNConfig
from resdet.config.schema import InputConfig as InputConfig
from resdet.config.schema import MaskConfig as MaskConfig
from resdet.config.schema import ModelConfig as ModelConfig
from resdet.config.schema import PoolConfig as PoolConfig
from resdet.config.schema import RPNConfig as RPNConfig
from resdet.config.schema import SplitConfig as SplitConfig
from resdet.config.schema import SyntheticConfig as SyntheticConfig
from resdet.config.schema import TrainConfig as TrainConfig
from resdet.config.schema import TrainSplitConfig as TrainSplitConfig
from resdet.config.schema import data_root as data_root
from resdet.config.schema import frozen_but_random as frozen_but_random
