"""Package metadata, and the .pth file that prepares torchvision in every process of the environment."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HOOK = "sglang_cpu_standins.pth"


class BuildWithHook(build_py):
    """Puts the .pth file beside the packages, where the interpreter looks for it at start."""

    def run(self) -> None:
        """Build as usual, then add the file."""
        super().run()
        self.copy_file(HOOK, str(Path(self.build_lib) / HOOK))


setup(
    name="sglang-cpu-standins",
    version="2",
    description="Import-only stand-ins for what SGLang lacks on a machine without a GPU",
    python_requires=">=3.11",
    packages=["sgl_kernel", "sglang_cpu_standins"],
    entry_points={
        "sglang.srt.plugins": [
            "cpu_host_memory = sglang_cpu_standins.host_memory:register",
            "cpu_forked_processes = sglang_cpu_standins.forked_processes:register",
        ]
    },
    cmdclass={"build_py": BuildWithHook},
)
