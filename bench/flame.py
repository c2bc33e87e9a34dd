"""A flame graph of what ``py-spy record --native --threads --format raw`` wrote, without waiting.

``uv run python -m bench.flame RAW SVG TITLE`` draws a process's CPU time; what is less than 0.2 %
of it is left out.
"""

from __future__ import annotations

import argparse
import re
import zlib
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

# A thread that is in one of these waits.
_WAITING = re.compile(
    r"_queue_SimpleQueue_get|epoll_p?wait|pthread_cond_(timed)?wait|acquire_lock|_poll_wrapper"
)
_LINE = re.compile(r"(:\d+)?\)$")
# What every stack begins with, and frames without a name.
_COMMON = re.compile(
    r"^(0x[0-9a-f]+ |_run_module_as_main|_run_code|<module>|Typer|Command|Context|get_callback"
    r"|_main"
    r"|run_everything|run_all|run_named|run \(|Runner|run_until_complete|run_forever|Loop|uv_"
    r"|uv__|Py_|Thread\.|thread_run|_worker|_WorkItem|__Pyx|_?PyObject|Task|task_|Handle__|loop_cb"
    r"|start_thread|clone|main |_start|cfunction|method_vectorcall|context_run)"
)
_WIDTH, _ROW, _LETTER = 1200, 16, 6.6
_LEAST = 0.002


@dataclass
class Frame:
    """Samples in a function and in what it called."""

    samples: int = 0
    called: dict[str, Frame] = field(default_factory=dict)


def read(text: str) -> Frame:
    root = Frame()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        if _WAITING.search(stack):
            continue
        frame, samples = root, int(count)
        root.samples += samples
        for name in stack.split(";")[1:]:
            if not _COMMON.match(name):
                frame = frame.called.setdefault(_LINE.sub(")", name), Frame())
                frame.samples += samples
    return root


def draw(root: Frame, title: str) -> str:
    boxes: list[str] = []
    height = (_depth(root, root.samples) + 2) * _ROW

    def add(frame: Frame, left: float, level: int) -> None:
        for name, callee in sorted(frame.called.items()):
            share = callee.samples / root.samples
            if share >= _LEAST:
                boxes.append(_box(name, share, left, height - (level + 1) * _ROW))
                add(callee, left, level + 1)
            left += share * _WIDTH

    add(root, 0.0, 0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'font-family="monospace" font-size="11"><text x="4" y="12">{escape(title)} '
        f"({root.samples} samples)</text>{''.join(boxes)}</svg>\n"
    )


def _depth(frame: Frame, total: int) -> int:
    deep = [_depth(f, total) for f in frame.called.values() if f.samples / total >= _LEAST]
    return 1 + max(deep, default=0)


def _box(name: str, share: float, left: float, top: int) -> str:
    width = share * _WIDTH
    hue = zlib.crc32(name.rpartition("(")[2].encode()) % 60
    shown = escape(name[: max(0, int((width - 4) / _LETTER))])
    text = f'<text x="{left + 2:.1f}" y="{top + 12}">{shown}</text>' if len(shown) > 2 else ""
    return (
        f"<g><title>{escape(name)} {share:.1%}</title>"
        f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{_ROW - 1}" '
        f'fill="hsl({hue},80%,70%)"/>{text}</g>'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("raw", type=Path)
    parser.add_argument("svg", type=Path)
    parser.add_argument("title")
    wanted = parser.parse_args()
    root = read(wanted.raw.read_text())
    wanted.svg.write_text(draw(root, wanted.title))
    for name, frame in sorted(root.called.items(), key=lambda item: -item[1].samples)[:20]:
        print(f"{frame.samples / root.samples:6.1%} {name}")


if __name__ == "__main__":
    main()
