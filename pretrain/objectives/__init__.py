"""What trains: one file an objective. The table of all of them is `pretrain/tables.py`."""
