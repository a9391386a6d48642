"""The settings of a server: their groups, and where their values are read from."""

from eyewall.settings.groups import (
    AuthSettings,
    BusSettings,
    CompressionSettings,
    HistorySettings,
    LimitSettings,
    LoggingSettings,
    MetricsSettings,
    OfflineSettings,
    OpsSettings,
    ServerSettings,
    SettingsError,
    StateSettings,
    TlsSettings,
)
from eyewall.settings.settings import Settings

__all__ = [
    "AuthSettings",
    "BusSettings",
    "CompressionSettings",
    "HistorySettings",
    "LimitSettings",
    "LoggingSettings",
    "MetricsSettings",
    "OfflineSettings",
    "OpsSettings",
    "ServerSettings",
    "Settings",
    "SettingsError",
    "StateSettings",
    "TlsSettings",
]
