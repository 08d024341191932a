from tests.cli.conftest import project, single_threaded_processes

__all__ = ["project", "single_threaded_processes"]
