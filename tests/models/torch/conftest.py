# These import torch, which nothing else here needs.
collect_ignore = ["make_reference.py", "networks.py"]
