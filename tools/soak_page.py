"""The page of the long campaigns, `docs/results/soak.md`, from what `tools/soak.py` found."""

INTRODUCTION = """# Under faults

Written by `make soak`; what is promised is in [faults](../concepts/faults.md). A part is added when it has ended without a failure; one that failed stops the campaign and is not here. The seeds are fixed, so a kill can be done again: `make soak ARGS="--replay 'fit:17'"`.
"""  # noqa: E501


def page(found):
    """The results for readers; a part that was not run is named."""
    sections = {"kills": kills, "ctrl-c": ctrl_c, "bits": bits, "fuzz": fuzz, "leaks": leaks,
                "cluster": cluster}  # fmt: skip
    lines = [INTRODUCTION, f"Machine: {found['machine']}.", ""]
    for name, section in sections.items():
        # Seconds are written when a part has come to its end.
        if "seconds" in found.get(name, {}):
            stages = {k: v for k, v in found[name].items() if k not in ("seconds", "code")}
            lines += [*section(stages), "", f"(Code {found[name]['code'][:12]}.)", ""]
    left_out = [name for name in sections if "seconds" not in found.get(name, {})]
    if left_out:
        lines += [f"Not run to the end: {', '.join(left_out)}.", ""]
    return "\n".join(lines)


def kills(stages):
    """Who was killed, how often, and when."""
    n_kill = sum(part.get(kind, 0) for part in stages.values() for kind in ("event", "time"))
    n_byte = sum(part.get("byte", 0) for part in stages.values())
    lines = [
        "## Kills", "",
        f"**{n_kill} times kill -9, and {n_byte} times killed by the kernel in the middle of a "
        "write.** After each, no file with a final name was corrupt, nothing that was finished was "
        "lost, and the job, called again, ended with what an undisturbed one ends with and left "
        "nothing hidden behind.", "",
        "| job | before a touch of the disk | at a random time | inside a write | came too late |"
        " seeds |", "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, part in stages.items():
        counts = [part.get(k, 0) for k in ("event", "time", "byte", "ended before", "seeds")]
        lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
    return lines


def ctrl_c(stages):
    """How often Ctrl-C came in time."""
    return [
        "## Ctrl-C", "",
        f"Ctrl-C at {10 * len(stages)} seeded moments, {sum(stages.values())} of them in time: "
        "each ended cleanly, and the job could be gone on with.",
    ]  # fmt: skip


def bits(turned):
    """Bits turned, by artefact."""
    lines = ["## Damaged bits", "", "One bit at a time: every bit of a file of up to 750 bytes, "
             "6,000 spread over a longer one. What was not refused read as exactly the same "
             "artefact (white space, or a description that nobody reads back).", "",
             "| artefact | bits turned | refused | harmless |",
             "| --- | --- | --- | --- |"]  # fmt: skip
    for name, part in turned.items():
        harmless = part["turned"] - part["refused"]
        lines.append(f"| {name} | {part['turned']} | {part['refused']} | {harmless} |")
    return lines


def fuzz(done):
    """Fuzzing tests."""
    return ["## Fuzzing", "",
            f"{done['passed']} fuzzing tests passed with 3,000 examples each."]  # fmt: skip


def leaks(done):
    """Leak tests."""
    return ["## Leaks", "", f"{done['passed']} leak tests passed with 10,000 cycles each."]


def cluster(done):
    """Tests on a cluster."""
    return [
        "## On a cluster", "",
        f"{done['passed']} campaigns on local clusters of Ray {done['ray']} "
        "(`tests/soak/test_ray_soak.py`), each compared with one undisturbed process to 1e-9: "
        "fits under random kills of workers while a node is removed and records are bad; the same "
        "with sums that travel through shared memory; a capture under kills; 1, 2 and 4 actors, "
        "and units in reversed order; a unit that kills every worker, which is counted and left "
        "out; Ctrl-C in a fit, gone on with from its checkpoint; Ctrl-C that leaves no process, "
        "and leaves a cluster of somebody else alone.",
    ]  # fmt: skip
