from tests.cli.conftest import project, restored_imports, single_threaded_processes

__all__ = ["project", "restored_imports", "single_threaded_processes"]
