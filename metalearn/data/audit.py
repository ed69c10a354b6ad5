"""Whether data are what results on them assume: splits that share nothing, tasks whose query is not in their
support, content that is what was published.

What is looked at in pictures alone is in `audit_pictures`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from metalearn.core import DRAWN_WITHOUT_END, SPLITS, Member, Source
from metalearn.data.audit_pictures import PictureAudit
from metalearn.data.duplicates import METHOD
from metalearn.data.findings import Audit, Finding, counted, listed
from metalearn.data.images import ImageClasses
from metalearn.data.overlap import support_and_query
from metalearn.errors import DataError

log = logging.getLogger(__name__)


def audit(source: Source, places: Mapping[str, str | None]) -> Audit:
    """Every check that applies, in order. places: `root` and `cache_dir` where the user set them.

    Nothing is fetched and no problem of the data ends it; DataError where there are none.
    """
    findings = [checksums(source, places)]
    if not isinstance(source, ImageClasses):
        findings += [disjoint(source), counts(source), *support_and_query(source)]
        kinds = "files, duplicates, names and balance of classes"
        findings.append(Finding("pictures", "note", f"data={source.name} has none: {kinds} do not apply"))
        return Audit(source.name, findings, {})
    log.info("reading every picture")
    pictures = PictureAudit(source)
    findings += pictures.files()
    if pictures.prints.unreadable:
        why = "not looked at, since pictures cannot be read; repair or remove them first"
        shared = [Finding("classes of splits", "note", why), Finding("support and query", "note", why)]
    else:
        shared = [disjoint(source), *support_and_query(source)]
    findings += [*pictures.classes(), shared[0], *pictures.duplicates(), *shared[1:]]
    return Audit(source.name, findings, pictures.sizes, METHOD)


def checksums(source: Source, places: Mapping[str, str | None]) -> Finding:
    given = {key: str(places[key]) for key in ("root", "cache_dir") if places.get(key) is not None}
    try:
        found = source.audit(**given)
    except FileNotFoundError as error:
        raise DataError(f"data={source.name} is {error}") from error
    except DataError as error:
        return Finding("checksums", "error", str(error))
    if found is not None:
        return Finding("checksums", "ok", found)
    if any(not location.made for location in source.locations):
        return Finding(
            "checksums", "note", "nothing says what the files should be: no SHA256SUMS beside them"
        )
    return Finding("checksums", "ok", "made by metalearn itself, so that there is nothing to compare with")


def disjoint(source: Source) -> Finding:
    """Nobody is in two splits, by content or by source and name."""
    check = "classes of splits"
    members = {split: source.members(split) for split in SPLITS}
    if any(found is None for found in members.values()):
        return Finding(check, "warning", f"data={source.name} does not say who is in its splits (members)")
    if any(found == DRAWN_WITHOUT_END for found in members.values()):
        return Finding(check, "ok", "tasks are drawn without end, so that no two splits share any")
    shared = [
        f"{name} ({one}) and {other_name} ({other})"
        for one, other in combinations(SPLITS, 2)
        for name, other_name in _shared(list(members[one] or ()), list(members[other] or ()))
    ]
    if shared:
        what = counted(
            len(shared), "pair of the same content or name lies", "pairs of the same content or name lie"
        )
        return Finding(check, "error", f"{what} in two splits: {listed(shared)}", shared)
    sizes = ", ".join(f"{split} {len(members[split] or ())}" for split in SPLITS)
    return Finding(check, "ok", f"nobody is in two splits, by content or name ({sizes})")


def _shared(one: Sequence[Any], other: Sequence[Any]) -> Iterator[tuple[str, str]]:
    known: dict[object, Member] = {}
    for member in one:
        known[member[:2]] = member
        if member.sha256 is not None:
            known[member.sha256] = member
    for member in other:
        same = known.get(member[:2]) or known.get(member.sha256)
        if same is not None:
            yield same.name, member.name


def counts(source: Source) -> Finding:
    """Of a source without classes: how many tasks there are."""
    numbers = {split: source.num_tasks(split) for split in SPLITS}
    if all(number is None for number in numbers.values()):
        return Finding("tasks", "note", "drawn without end")
    return Finding("tasks", "note", ", ".join(f"{split} {number}" for split, number in numbers.items()))
