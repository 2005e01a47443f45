# SPDX-License-Identifier: Apache-2.0
"""What the page says, in English and Chinese. Errors of a worker are shown as the worker writes them."""

LANGUAGES = ("en", "zh")

WORDS: dict[str, tuple[str, str]] = {
    "title": ("LLaVA in PaddlePaddle", "PaddlePaddle 上的 LLaVA"),
    "model": ("Model", "模型"),
    "no_model": ("no model is served now", "目前没有可用的模型"),
    "reload": ("Reload the list", "刷新列表"),
    "pictures": ("Pictures", "图片"),
    "arrangement": ("The pictures of a question are", "一次提问中的图片是"),
    "separate": ("separate pictures", "相互独立的图片"),
    "views": ("views of one object", "同一物体的多个视角"),
    "sheet": ("a sheet of views", "多视角拼图"),
    "grid": ("Views along a side of the sheet", "拼图每边的视角数"),
    "mode": ("A picture that is not square", "非正方形图片"),
    "Default": ("as the model does", "按模型默认方式"),
    "Pad": ("pad to a square", "填充为正方形"),
    "Crop": ("crop its middle", "裁剪中间部分"),
    "Resize": ("squeeze to a square", "缩放为正方形"),
    "parameters": ("Parameters", "参数"),
    "temperature": ("Temperature (0: the likeliest answer)", "温度（0：最可能的回答）"),
    "top_p": ("Top-p", "Top-p"),
    "tokens": ("Longest answer in tokens", "回答的最大 token 数"),
    "examples": ("Examples", "示例"),
    "empty": ("Add a picture, and ask about it.", "添加图片，然后提问。"),
    "ask": ("Type a question; pictures can be pasted or dropped here", "输入问题；可在此粘贴或拖放图片"),
    "up": ("👍 Good", "👍 赞"),
    "down": ("👎 Bad", "👎 踩"),
    "flag": ("⚑ Flag", "⚑ 举报"),
    "again": ("↻ Again", "↻ 重新生成"),
    "clear": ("✕ Clear", "✕ 清空"),
    "thanks": ("Thank you, this is noted.", "谢谢，已记录。"),
    "type_question": ("Type a question.", "请输入问题。"),
    "gone": ("A picture of this conversation is no longer kept here; clear it and begin anew.",
             "对话中的图片已过期删除，请清空后重新开始。"),
    "too_many": ("More than {most} pictures in one question; leave some out.",
                 "一次提问最多 {most} 张图片，请减少图片。"),
    "failed": ("The page failed; its log has the reason.", "页面出错，原因见日志。"),
    "note": ("Answers of a model can be wrong. Pictures stay on the server for some hours, and nowhere else.",
             "模型的回答可能有误。图片仅在服务器上保留数小时。"),
    "note_texts": ("A vote is kept together with its conversation.", "投票会连同对话一起保存。"),
}  # fmt: skip
"""Each text by its name, in the order of ``LANGUAGES``."""


def text(name: str, language: str) -> str:
    """The text ``name`` in a language."""
    return WORDS[name][LANGUAGES.index(language)]


def table(language: str) -> dict[str, str]:
    """All texts of a language."""
    return {name: text(name, language) for name in WORDS}


def preferred(accept: str) -> str:
    """The language of a browser by its header Accept-Language: that of the two which it names first, or English."""
    for part in accept.lower().split(","):
        name = part.partition(";")[0].strip().partition("-")[0]
        if name in LANGUAGES:
            return name
    return LANGUAGES[0]
