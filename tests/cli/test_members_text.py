"""Members as lines of text."""

from ensexport.cli.members_text import members_lines


def report(n_members):
    sha256 = "0123456789abcdef"
    members = [
        {"index": k, "path": f"m{k}.pt", "sha256": sha256, "container_key": None, "stripped_prefix": None}
        for k in range(n_members)
    ]
    return {"members": members, "skipped": [{"path": "log.txt", "reason": "no checkpoint"}]}


def test_every_member_has_its_line():
    lines = list(members_lines(report(50)))
    assert lines[0] == "members (50)"
    assert lines[50] == "   49  m49.pt  sha256 0123456789ab"
    assert lines[51:] == ["    -  log.txt  skipped: no checkpoint"]


def test_where_the_list_is_not_the_answer_it_is_cut():
    lines = list(members_lines(report(1000), most=40))
    assert lines[0] == "members (1000)"
    assert len(lines) == 1 + 40 + 1 + 1
    assert lines[41] == "  ... 960 more: `ensexport inspect` lists all"
    assert len(list(members_lines(report(40), most=40))) == 1 + 40 + 1
