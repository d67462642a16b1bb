"""Profiles of several bundles and devices in one report: HTML without network or scripts, Markdown, JSON."""
