# These import torch, which nothing else here needs.
collect_ignore = ["torch_gpt.py", "torch_networks.py", "torch_worker.py"]
