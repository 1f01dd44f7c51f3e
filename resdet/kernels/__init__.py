"""Custom operators and faster CPU arithmetic. Each has a reference that tests compare it with.

nms           fixed-size suppression; the reference is torchvision's operator
assign        matching of least cost; SciPy's, on the host
nms_triton    the same on CUDA without a host synchronisation
convolution   `convolve`: the one function that chooses between torch's convolution and the faster ways
winograd      3x3 convolutions with fewer multiplications; the reference is `F.conv2d`

`RESDET_FAST_CPU=0` in the environment turns the faster CPU arithmetic off: convolutions are then `F.conv2d` and RoIAlign and
deformable attention are torchvision's and torch's operators. Results differ in the last bits only.
"""

import os

FAST_CPU = os.environ.get("RESDET_FAST_CPU", "1") != "0"
