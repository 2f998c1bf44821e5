__all__ = ["__version__", "probe"]

__version__: str

def probe() -> tuple[str, str]: ...
