"""The version of the package, for the build too."""

VERSION = "0.1.0"
