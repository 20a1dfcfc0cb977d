"""The examples need packages of their own, and are run by their tests."""

collect_ignore = ["examples"]
