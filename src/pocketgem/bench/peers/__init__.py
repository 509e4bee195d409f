"""Other runtimes, each driven by a worker of its own. These run in the peer's interpreter and import no room but this.

The runtimes are imported by name when a worker starts: none of them is a dependency of this package.
"""
