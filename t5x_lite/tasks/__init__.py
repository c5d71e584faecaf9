"""Defines the built-in tasks and metrics, and makes tasks from files. Importing a module registers only the tasks that
the module defines; `builtin.register()` registers all built-in tasks."""
