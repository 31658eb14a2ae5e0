#!/usr/bin/python3
"""Count test cases in what the test programs printed.

Usage: count_tests.py --junit FILE … --tap DIR … [--repeat-junit FILE …]

Prints what each failing or skipped program said (its red lines and its last
ones), then one line for each of them, then, last, "N passed, M failed, K
skipped": who has only the end of a log has what matters. Exits 0 only when nothing failed or was
skipped and something passed. A test case is counted where it is run: one of
Criterion's, one line of TAP, one of Python's unittest; a program that prints
none of these is one test case. What --repeat-junit names are runs of the same
test cases in another build: their failures count, their passes do not.
A sanitizer's report anywhere is a failure, whatever the program said.
"""

import argparse
import pathlib
import re
import sys
import xml.etree.ElementTree

SANITIZER = re.compile(
    r"ERROR: (?:Address|Leak|Memory|Thread)Sanitizer"
    r"|WARNING: ThreadSanitizer|runtime error: |SUMMARY: \w+Sanitizer"
)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
CRITERION = re.compile(
    r"Tested: (\d+) \| Passing: (\d+) \| Failing: (\d+) \| Crashing: (\d+)"
)
CRITERION_SKIP = re.compile(r"^\[SKIP\] ", re.M)
TAP_PLAN = re.compile(r"^1\.\.(\d+)", re.M)
TAP_LINE = re.compile(r"^(not )?ok\b([^\n]*)", re.M)
TAP_SKIP = re.compile(r"#\s*(?:skip|todo)", re.I)
UNITTEST = re.compile(r"^Ran (\d+) tests? in ", re.M)
UNITTEST_END = re.compile(r"^(OK|FAILED)(?: \(([^)]*)\))?\s*$", re.M)
# Lines of a program's output that say what is wrong.
RED = re.compile(
    r"^not ok\b|^\[FAIL\]|^\[----\] [^ ]+:\d+: |^(FAIL|ERROR): |^Traceback|"
    + SANITIZER.pattern
)
AFTER, REDS, LAST, WIDTH = 8, 60, 30, 300


def excerpt(text):
    """The red lines of an output, each with some behind it, and its last lines."""
    lines = [x[:WIDTH] for x in COLOUR.sub("", text).splitlines()]
    keep = {}
    for i, line in enumerate(lines):
        if RED.search(line) and len(keep) < REDS:
            keep.update(dict.fromkeys(range(i, min(i + AFTER, len(lines)))))
    keep.update(dict.fromkeys(range(max(0, len(lines) - LAST), len(lines))))
    out, last = [], -1
    for i in sorted(keep):
        if i != last + 1:
            out.append("...")
        out.append(lines[i])
        last = i
    return out


class Count:
    """Passed, failed and skipped cases, and why one of them is not green."""

    def __init__(self, passed=0, failed=0, skipped=0, why=""):
        self.passed, self.failed, self.skipped = passed, failed, skipped
        self.why = why

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped


def count_tap(text):
    count = Count()
    for bad, rest in TAP_LINE.findall(text):
        if TAP_SKIP.search(rest):
            count.skipped += 1
        elif bad:
            count.failed += 1
            count.why = count.why or "not ok" + rest
        else:
            count.passed += 1
    plan = TAP_PLAN.search(text)
    seen = count.passed + count.failed + count.skipped
    if not plan:
        count.failed += 1
        count.why = count.why or "no plan: it ended early"
    elif int(plan.group(1)) != seen:
        count.failed += 1
        count.why = count.why or f"planned {plan.group(1)}, ran {seen}"
    if plan and int(plan.group(1)) == 0 and seen == 0:
        count.skipped += 1
    return count


def count_unittest(text):
    ran = sum(int(n) for n in UNITTEST.findall(text))
    count = Count()
    for _, rest in UNITTEST_END.findall(text):
        for word in (rest or "").split(","):
            name, _, number = word.strip().partition("=")
            if name in ("failures", "errors", "unexpected successes"):
                count.failed += int(number)
            elif name in ("skipped", "expected failures"):
                count.skipped += int(number)
    count.passed = max(0, ran - count.failed - count.skipped)
    if ran == 0:
        count.failed += 1
        count.why = "no test case ran"
    return count


def count_output(text, ended_well):
    """What one program's output, and its end, amount to."""
    text = COLOUR.sub("", text)
    syntheses = CRITERION.findall(text)
    if syntheses:
        count = Count()
        # "Failing" includes the crashed ones.
        for tested, passing, _, _ in syntheses:
            count.passed += int(passing)
            count.failed += int(tested) - int(passing)
        count.skipped = len(CRITERION_SKIP.findall(text))
        if count.passed + count.failed + count.skipped == 0:
            count.failed, count.why = 1, "no test case ran"
    elif TAP_PLAN.search(text) or TAP_LINE.search(text):
        count = count_tap(text)
    elif UNITTEST.search(text):
        count = count_unittest(text)
    else:
        count = Count(passed=1) if ended_well else Count(failed=1)
    report = SANITIZER.search(text)
    if report and not count.failed:
        count.failed = 1
        count.passed = max(0, count.passed - 1)
    if report:
        count.why = "sanitizer: " + report.group(0)
    if not ended_well and not count.failed:
        count.failed = 1
        count.why = "it ended badly after its tests"
    return count


def junit_programs(path):
    """(name, output, ended well or None if not run) for each of ctest's."""
    try:
        root = xml.etree.ElementTree.parse(path).getroot()
    except (OSError, xml.etree.ElementTree.ParseError):
        log = pathlib.Path(path).with_suffix(".log")
        text = log.read_text(errors="replace") if log.exists() else "no log\n"
        yield "ctest, which did not end", text, False
        return
    for case in root.iter("testcase"):
        out = case.findtext("system-out") or ""
        status = case.get("status")
        if status in ("notrun", "disabled") or case.find("skipped") is not None:
            yield case.get("name"), out, None
        else:
            yield case.get("name"), out, status == "run"


def tap_programs(folder):
    """The same from the guest suite: NAME.out and NAME.code."""
    for out in sorted(pathlib.Path(folder).glob("*.out")):
        code = out.with_suffix(".code")
        text = out.read_text(errors="replace")
        ended = code.read_text().strip() if code.exists() else "no exit code"
        yield out.stem, text if ended == "0" else text + \
            f"# exit code: {ended}\n", ended == "0"


def count_programs(programs, label, said):
    """Counts them; a line for each that is not green goes to `said`."""
    total = Count()
    names = 0
    for name, text, good in programs:
        names += 1
        if good is None:
            # Asked for and not run, for whatever reason it gives.
            count = Count(skipped=1, why=text.strip()[:200] or "not run")
        else:
            count = count_output(text, good)
        if count.failed or count.skipped:
            said.append(
                f"{label} {name}: {count.passed} passed, {count.failed} failed, "
                f"{count.skipped} skipped ({count.why or 'see its output'})"
            )
            print(f"--- {label} {name}:")
            for line in excerpt(text):
                print("    " + line)
        total.add(count)
    if names == 0:
        said.append(f"{label}: no test program ran")
        total.failed += 1
    return total


SELF_TEST = [
    # output, ended well, passed, failed, skipped
    ("[====] Synthesis: Tested: 5 | Passing: 5 | Failing: 0 | Crashing: 0 \n", True, 5, 0, 0),
    ("[====] Synthesis: Tested: 5 | Passing: 3 | Failing: 2 | Crashing: 1 \n", False, 3, 2, 0),
    ("[====] Synthesis: Tested: 0 | Passing: 0 | Failing: 0 | Crashing: 0 \n", True, 0, 1, 0),
    ("[SKIP] a::b: no\n[====] Synthesis: Tested: 1 | Passing: 1 | Failing: 0 | Crashing: 0 \n", True, 1, 0, 1),
    ("[\x1b[0;34m====\x1b[0m] \x1b[0;1mSynthesis: Tested: \x1b[0;34m2\x1b[0m | Passing: \x1b[0;32m2\x1b[0m"
     " | Failing: \x1b[0;31m0\x1b[0m | Crashing: \x1b[0;31m0\x1b[0m \n", True, 2, 0, 0),
    ("Tested: 2 | Passing: 2 | Failing: 0 | Crashing: 0 \nERROR: LeakSanitizer: x", True, 1, 1, 0),
    ("Tested: 2 | Passing: 2 | Failing: 0 | Crashing: 0 \n", False, 2, 1, 0),
    ("1..2\nok 1 - a\nok 2 - b\n", True, 2, 0, 0),
    ("1..2\nok 1 - a\nnot ok 2 - b\n", False, 1, 1, 0),
    ("ok 1 - a\nok 2 - b\n", True, 2, 1, 0),
    ("1..3\nok 1 - a\nok 2 # SKIP no\n", True, 1, 1, 1),
    ("ok 1 - a\nok 2 - b\n1..2\n", False, 2, 1, 0),
    ("x.c:3:4: runtime error: shift\n", True, 0, 1, 0),
    ("...\nRan 3 tests in 0.1s\n\nOK\n", True, 3, 0, 0),
    ("...\nRan 3 tests in 0.1s\n\nFAILED (failures=1, skipped=1)\n", False, 1, 1, 1),
    ("Ran 0 tests in 0.1s\n\nOK\n", True, 0, 1, 0),
    ("whatever\n", True, 1, 0, 0),
    ("whatever\n", False, 0, 1, 0),
]


def self_test():
    for text, good, *want in SELF_TEST:
        got = count_output(text, good)
        if [got.passed, got.failed, got.skipped] != want:
            sys.exit(f"count_tests.py miscounts {text!r}: {vars(got)}, not {want}")
    text = "1..99\n" + "".join(
        "not ok 9 - \x1b[1mred\n# why\n" if i == 9 else f"ok {i} - a\n"
        for i in range(1, 100))
    got = excerpt(text)
    if got[:3] != ["...", "not ok 9 - red", "# why"] or \
            got[-1] != "ok 99 - a" or len(got) != 2 + AFTER + LAST:
        sys.exit(f"count_tests.py leaves out what matters: {got}")


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    for option in ("--junit", "--tap", "--repeat-junit"):
        parser.add_argument(option, action="append", default=[])
    args = parser.parse_args()
    self_test()
    total, said = Count(), []
    for path in args.junit:
        total.add(count_programs(junit_programs(path), "host", said))
    for path in args.repeat_junit:
        again = count_programs(junit_programs(path), "host (release)", said)
        again.passed = 0
        total.add(again)
    for folder in args.tap:
        total.add(count_programs(tap_programs(folder), "guest", said))
    for line in said:
        print(line)
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped")
    sys.exit(0 if total.passed and not total.failed and not total.skipped else 1)


if __name__ == "__main__":
    main()
