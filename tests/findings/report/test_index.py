"""The index of reports."""

from html.parser import HTMLParser
from urllib.parse import unquote

from lesion_d2.findings.report import IndexRow, write_index


def test_index_links_to_reports(tmp_path):
    rows = [
        IndexRow("a", 61, 4, 12.34, None, tmp_path / "out" / "a #1" / "report.html"),
        IndexRow("javascript:alert(1)", 5, 0, 1, None, tmp_path / "out" / "javascript:alert(1)"),
        IndexRow("<script>b</script>", error="b: 3 slices, expected 9 or <more>"),
    ]
    (tmp_path / "out").mkdir()
    write_index(tmp_path / "out" / "index.html", rows)

    links, cells, tags = [], [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append(tag)
            links.extend(value for name, value in attrs if name == "href")

        def handle_data(self, data):
            if tags and tags[-1] in ("a", "th", "td") and data.strip():
                cells.append(data.strip())

    Reader().feed((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    assert links == ["a%20%231/report.html", "javascript%3Aalert%281%29"]
    assert unquote(links[0]) == "a #1/report.html"
    assert cells[5:9] == ["a", "61", "4", "12.3"]
    assert cells[-2:] == ["<script>b</script>", "b: 3 slices, expected 9 or <more>"]
    assert "script" not in tags
