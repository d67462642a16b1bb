"""Devices: what is known of them, what a bundle would do there, their sensors, and the ways to reach them.

The names below are imported on first use.
"""

from edgeslim.lazy import lazy_names

_HOME = {
    "Device": "catalog",
    "Estimate": "estimate",
    "Readings": "sensors",
    "SensorPlan": "sensor_plan",
    "estimate_bundle": "estimate",
    "find_sensors": "sensor_plan",
    "known_devices": "catalog",
    "load_device": "catalog",
    "probe_machine": "probe",
    "read_device": "catalog",
    "read_sensors": "sensors",
    "read_workload": "workload",
}

__all__ = sorted(_HOME)
__getattr__, __dir__ = lazy_names(__name__, _HOME)
