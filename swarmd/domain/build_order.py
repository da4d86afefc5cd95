"""Which packages wait for which: dependencies without their circles. The same edges, in whatever
order they come, are always kept and dropped alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec


class Edge(msgspec.Struct, frozen=True, order=True, array_like=True):
    """`after` needs `before`: to be built, or else only to be run."""

    before: str
    after: str
    build: bool


def acyclic(edges: Iterable[Edge]) -> tuple[tuple[Edge, ...], tuple[Edge, ...]]:
    """What is kept, and what was dropped because it closes a circle: needs of running first, and
    needs of building only where they make a circle by themselves."""
    every = sorted(_strongest(edges))
    build = [edge for edge in every if edge.build]
    kept_build, dropped = _without_back_edges(build)
    run = [edge for edge in every if not edge.build]
    circle_of = _circles([*kept_build, *run])
    kept = list(kept_build)
    for edge in run:
        inside = circle_of[edge.before] == circle_of[edge.after]
        (dropped if inside else kept).append(edge)
    return tuple(sorted(kept)), tuple(sorted(dropped))


def _strongest(edges: Iterable[Edge]) -> Iterator[Edge]:
    """One for each pair; a package waits for itself in no case."""
    found: dict[tuple[str, str], bool] = {}
    for edge in edges:
        if edge.before != edge.after:
            pair = (edge.before, edge.after)
            found[pair] = found.get(pair, False) or edge.build
    return (Edge(before, after, build) for (before, after), build in found.items())


def _dependants(edges: Iterable[Edge]) -> dict[str, list[Edge]]:
    graph: dict[str, list[Edge]] = {}
    for edge in edges:
        graph.setdefault(edge.before, []).append(edge)
        graph.setdefault(edge.after, [])
    return graph


def _without_back_edges(edges: list[Edge]) -> tuple[list[Edge], list[Edge]]:
    """By depth, from each name in its order: what leads back to where we came from is dropped."""
    graph = _dependants(edges)
    kept: list[Edge] = []
    dropped: list[Edge] = []
    done: set[str] = set()
    for start in sorted(graph):
        if start in done:
            continue
        path = {start}
        stack = [(start, iter(graph[start]))]
        while stack:
            name, rest = stack[-1]
            edge = next(rest, None)
            if edge is None:
                stack.pop()
                path.discard(name)
                done.add(name)
            elif edge.after in path:
                dropped.append(edge)
            else:
                kept.append(edge)
                if edge.after not in done:
                    path.add(edge.after)
                    stack.append((edge.after, iter(graph[edge.after])))
    return kept, dropped


def _circles(edges: list[Edge]) -> dict[str, int]:
    """For each name the number of its strongly connected component (Tarjan's, without recursion:
    a world has thousands of packages in a row)."""
    graph = _dependants(edges)
    found: dict[str, int] = {}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    open_names: list[str] = []
    for start in sorted(graph):
        if start in index:
            continue
        index[start] = low[start] = len(index)
        open_names.append(start)
        stack = [(start, iter(graph[start]))]
        while stack:
            name, rest = stack[-1]
            edge = next(rest, None)
            if edge is not None:
                child = edge.after
                if child not in index:
                    index[child] = low[child] = len(index)
                    open_names.append(child)
                    stack.append((child, iter(graph[child])))
                elif child not in found:
                    low[name] = min(low[name], index[child])
                continue
            stack.pop()
            if stack:
                parent = stack[-1][0]
                low[parent] = min(low[parent], low[name])
            if low[name] == index[name]:
                while name not in found:
                    found[open_names.pop()] = index[name]
    return found
