"""One run: `fit`, its loop, what it leaves on disk, and going on with it.

`fit.fit` is the library's call, `configured_run.train` the command's. It must not know how a run
is reported or diagnosed.
"""
