"""Tasks, their metrics, and the tasks of files. Importing a module registers the tasks it defines, and no others:
`builtin.register()` registers all the built-in ones."""
