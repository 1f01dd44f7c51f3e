"""Custom operators and faster CPU kernels; tests compare each with a reference.

nms           NMS with outputs of fixed size; the reference is torchvision's operator
nms_triton    the same on CUDA, without host synchronisation
assign        minimum-cost matching, by SciPy on the host
convolution   `convolve`, which chooses between torch's convolution and faster kernels
winograd      3x3 convolutions with fewer multiplications; the reference is `F.conv2d`

The environment variable `RESDET_FAST_CPU=0` turns the faster CPU kernels off, in favour of `F.conv2d`, torchvision's
RoIAlign and `F.grid_sample`. Results differ in the last bits only.
"""

import os

FAST_CPU = os.environ.get("RESDET_FAST_CPU", "1") != "0"
