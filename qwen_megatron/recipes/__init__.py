"""Configurations that come with the package; `recipe:NAME` names one wherever a configuration file is taken."""
