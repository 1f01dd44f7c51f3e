"""RT-DETR: Zhao et al. 2023 (arXiv:2304.08069); version 2, Lv et al. 2024 (arXiv:2407.17140)."""
