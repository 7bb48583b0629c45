"""The Proxmox VE cluster file system: replicated configuration, mounted at /etc/pve."""

__version__ = "0.1.0"
