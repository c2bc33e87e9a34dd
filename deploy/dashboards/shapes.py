"""What every dashboard is made of, so that all of them look and behave alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from grafana_foundation_sdk.builders import stat, timeseries
from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    ReduceDataOptions,
    VizLegendOptions,
)
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

TAG = "mindweave"
PROMETHEUS = DataSourceRef(type_val="prometheus", uid="${datasource}")
# The window of a rate: Grafana makes it four scrapes at least.
EVERY = "[$__rate_interval]"
# Requests that people make: whoever asks for health is none of them.
REQUESTS = 'route!~"/health/.*|unknown"'
FAILURES = 'code=~"UNKNOWN|DEADLINE_EXCEEDED|UNIMPLEMENTED|INTERNAL|UNAVAILABLE|DATA_LOSS"'

_QUANTILES = (0.5, 0.95, 0.99)
_HEIGHT = 8
_LOW = 4

Panel: TypeAlias = Builder[models.Panel]
P = TypeVar("P", timeseries.Panel, stat.Panel)


@dataclass(frozen=True)
class Query:
    """A question in PromQL, and how the legend names its series."""

    expr: str
    legend: str


def rate(metric: str, labels: str = "", by: str = "") -> str:
    """What is counted a second, added up ``by`` labels."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{labels}}}{EVERY}))"


def share(part: str, whole: str) -> str:
    """How much of it; 0 and not nothing where there is none of the part."""
    return f"(({part}) or 0 * ({whole})) / ({whole})"


def quantile(q: float, histogram: str, labels: str = "", by: str = "") -> str:
    """A quantile of a histogram, for each of the labels in ``by``."""
    grouped = ", ".join(["le", *([by] if by else [])])
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', labels, grouped)})"


def quantiles(histogram: str, labels: str = "") -> list[Query]:
    """Median, p95 and p99."""
    return [Query(quantile(q, histogram, labels), f"p{q * 100:g}") for q in _QUANTILES]


def graph(
    title: str, about: str, unit: str, *queries: Query, width: int = 8, limit: float | None = None
) -> Panel:
    """Lines over time.

    Args:
        title: what is shown.
        about: what it means, and what to make of it.
        unit: one of Grafana's.
        queries: at least one.
        width: of 24.
        limit: a red line there.
    """
    legend = VizLegendOptions().show_legend(True).calcs(["lastNotNull", "max"])
    panel = (
        timeseries.Panel()
        .legend(legend.display_mode(LegendDisplayMode.TABLE).placement(LegendPlacement.BOTTOM))
        .fill_opacity(8)
        .min(0)
    )
    if limit is not None:
        line = GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.LINE)
        panel = panel.thresholds(_limits(limit)).thresholds_style(line)
    for index, query in enumerate(queries):
        panel = panel.with_target(_target(index, query))
    return _told(panel, title, about, unit).height(_HEIGHT).span(width)


def number(
    title: str, about: str, unit: str, query: Query, *, width: int = 4, good: float | None = None
) -> Panel:
    """The last value of each series; green from ``good`` on, red below."""
    panel = (
        stat.Panel()
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(BigValueGraphMode.NONE)
        .with_target(_target(0, query, instant=True))
    )
    if good is None:
        panel = panel.color_mode(BigValueColorMode.NONE)
    else:
        panel = panel.thresholds(_steps(("red", None), ("green", good)))
    return _told(panel, title, about, unit).height(_LOW).span(width)


def dashboard(
    uid: str, title: str, about: str, *rows: tuple[str, Sequence[Panel]], by_service: bool = False
) -> Dashboard:
    """A dashboard of titled rows; ``by_service`` lets who looks choose services."""
    made = (
        Dashboard(f"MindWeave / {title}")
        .uid(f"mindweave-{uid}")
        .description(about)
        .tags([TAG])
        .readonly()
        .timezone("browser")
        .time("now-3h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            DashboardLink("MindWeave")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .include_vars(False)
            .keep_time(True)
        )
        .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    if by_service:
        made = made.with_variable(_services())
    for name, panels in rows:
        made = made.with_row(Row(name))
        for panel in panels:
            made = made.with_panel(panel)
    for place, placed in enumerate(made.build().panels or [], 1):
        # Links to a panel hold its id.
        placed.id_val = place
    return made


def _services() -> QueryVariable:
    return (
        QueryVariable("service")
        .label("Service")
        .datasource(PROMETHEUS)
        .query("label_values(mindweave_build_info, service)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(text="All", value="$__all"))
    )


def _told(panel: P, title: str, about: str, unit: str) -> P:
    return panel.title(title).description(about).unit(unit).datasource(PROMETHEUS)


def _target(index: int, query: Query, *, instant: bool = False) -> Dataquery:
    target = (
        Dataquery()
        .ref_id(chr(ord("A") + index))
        .expr(query.expr)
        .legend_format(query.legend)
        .datasource(PROMETHEUS)
    )
    return target.instant() if instant else target.range()


def _limits(limit: float) -> ThresholdsConfig:
    return _steps(("transparent", None), ("red", limit))


def _steps(*steps: tuple[str, float | None]) -> ThresholdsConfig:
    found = [Threshold(value=value, color=color) for color, value in steps]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(found)
