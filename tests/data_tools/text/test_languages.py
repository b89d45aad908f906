"""Languages: code first, then the model."""

import pytest

from data_tools.text.languages import LanguageDetector, looks_like_code

PYTHON = "import os\n\ndef main(path):\n    for name in os.listdir(path):\n        print(name)\n    return 0\n"
C = '#include <stdio.h>\n\nint main(void) {\n    printf("hello\\n");\n    return 0;\n}\n'
ENGLISH = (
    "It was a bright cold day in April, and the clocks were striking thirteen.\nHe walked home slowly.\nIt rained.\n"
)


@pytest.mark.parametrize("text", [PYTHON, C, "const a = {\n  b: 3,\n};\nlet c = a.b;\nconsole.log(c);\n"])
def test_program_text(text: str) -> None:
    assert looks_like_code(text)
    assert LanguageDetector().detect(text) == ("code", 1.0)


def test_chinese_with_headings_lists_and_listings_is_chinese() -> None:
    text = "# 样式规范\n\n## 文本\n\n* 每章开头对全章做介绍\n* 结构标题一致\n\n```\nimport os\nx = 1\n```\n"
    assert LanguageDetector().detect(text)[0] == "zh"
    assert looks_like_code(
        "# 读取文件\nimport os\n\npath = os.getcwd()  # 当前目录\nfor name in os.listdir(path):\n    print(name)\n"
    )


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (ENGLISH, "en"),
        ("昨天我和朋友一起去公园散步,天气非常好。\n我们聊了很久。\n", "zh"),
        ("Der schnelle braune Fuchs springt über den faulen Hund, und alle freuen sich darüber.", "de"),
        ("Вчера мы гуляли в парке и долго разговаривали о книгах.", "ru"),
    ],
)
def test_natural_languages(text: str, language: str) -> None:
    found, score = LanguageDetector().detect(text)
    assert found == language
    assert 0.5 < score <= 1


def test_text_without_letters_is_no_language_for_sure() -> None:
    _, score = LanguageDetector().detect(" 1 2 3 ")
    assert score < 0.65
