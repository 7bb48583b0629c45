"""The Proxmox VE cluster file system: replicated configuration, mounted at /etc/pve."""

from pmxcfs._import import install as _install

__version__ = "0.1.0"

_install()
