"""gptlib: what a change to a small GPT is worth, and how sure we are.

Importing this package starts nothing: no torch, no device, no process group, no network.
"""

__version__ = "0.1.0"
