"""The pages' code is tested, not what builds the site of them, nor what was built."""

collect_ignore_glob = ["conf.py", "_ext/*", "_build/*", "_recipes/*", "gallery/*", "api/names/*"]
