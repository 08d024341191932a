"""Package folders: what lies in one, writing it, reading it back and checking it.

A pipeline checks a package where there is no torch: nothing here imports torch when it is imported.
"""
