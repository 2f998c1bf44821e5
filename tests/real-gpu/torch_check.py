"""What PyTorch sees of GPUs, and whether it computes on them."""

import sys

import torch

print("torch", torch.__version__, "sees", torch.cuda.device_count())
numbers = torch.arange(1000, device="cuda")
total = int((numbers * 3).sum().item())
print("computed", total, "on", torch.cuda.get_device_name(0))
sys.exit(total != 1498500)
