"""Settings of a peer and the constitution of its network."""

from owm.config._constitution import Constitution, load_constitution
from owm.config._document import Setting, describe_settings, render_settings
from owm.config._load import Effective, config_path, expand, load_settings
from owm.config._settings import (
    ROLES,
    ApiSettings,
    DataSettings,
    HealthSettings,
    LightningSettings,
    LimitsSettings,
    LogSettings,
    ModelSettings,
    NetworkSettings,
    NodeSettings,
    Settings,
    TaskSettings,
)

__all__ = [
    "ROLES",
    "ApiSettings",
    "Constitution",
    "DataSettings",
    "Effective",
    "HealthSettings",
    "LightningSettings",
    "LimitsSettings",
    "LogSettings",
    "ModelSettings",
    "NetworkSettings",
    "NodeSettings",
    "Setting",
    "Settings",
    "TaskSettings",
    "config_path",
    "describe_settings",
    "expand",
    "load_constitution",
    "load_settings",
    "render_settings",
]
