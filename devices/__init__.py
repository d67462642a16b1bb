"""Devices and the ways to reach them: `edgeslim.devices`. Empty until profiles leave the local machine."""
