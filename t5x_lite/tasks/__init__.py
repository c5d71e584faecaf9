"""Tasks, their metrics, and tasks made from files. Importing a module registers only the tasks that it defines;
`builtin.register()` registers all built-in tasks."""
