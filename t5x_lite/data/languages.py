"""Languages of multilingual translators: their codes, and where a model reads the mark of a language.

The mark of a language is one token. Families put it in different places (Liu et al. 2020; Tang et al. 2020; Fan et al.
2021; NLLB Team 2022):

    NLLB, mBART-50, M2M-100   language, text, end token
    mBART, older NLLB         text, end token, language

Inputs have the mark of the language that they are in, and targets that of theirs.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from t5x_lite.lookup import lookup

# The codes are those of the published models, in the order of their ids, except that NLLB's are sorted by script.
_BY_SCRIPT = {
    "Latn": (
        "ace afr aka als ast ayr azj bam ban bem bjn bos bug cat ceb ces cjk crh cym dan deu dik dyu eng epo est eus "
        "ewe fao fij fin fon fra fur fuv gaz gla gle glg grn hat hau hrv hun ibo ilo ind isl ita jav kab kac kam kbp "
        "kea kik kin kmb kmr knc kon lij lim lin lit lmo ltg ltz lua lug luo lus lvs min mlt mos mri nld nno nob nso "
        "nus nya oci pag pap plt pol por quy ron run sag scn slk slv smo sna som sot spa srd ssw sun swe swh szl taq "
        "tgl tpi tsn tso tuk tum tur twi umb uzn vec vie war wol xho yor zsm zul"
    ),
    "Arab": "ace acm acq aeb ajp apc arb ars ary arz azb bjn ckb kas knc pbt pes prs snd uig urd",
    "Cyrl": "bak bel bul kaz khk kir mkd rus srp tat tgk ukr",
    "Deva": "awa bho hin hne kas mag mai mar npi san",
    "Beng": "asm ben mni sat",
    **{
        "Ethi": "amh tir",
        "Hant": "yue zho",
        "Hebr": "heb ydd",
        "Mymr": "mya shn",
        "Tfng": "taq tzm",
        "Tibt": "bod dzo",
    },
    **{"Armn": "hye", "Geor": "kat", "Grek": "ell", "Gujr": "guj", "Guru": "pan", "Hang": "kor", "Hans": "zho"},
    **{"Jpan": "jpn", "Khmr": "khm", "Knda": "kan", "Laoo": "lao", "Mlym": "mal", "Orya": "ory", "Sinh": "sin"},
    **{"Taml": "tam", "Telu": "tel", "Thai": "tha"},
}
NLLB = tuple(f"{language}_{script}" for script, languages in _BY_SCRIPT.items() for language in languages.split())
_MBART = (
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP nl_XX "
    "ro_RO ru_RU si_LK tr_TR vi_VN zh_CN"
)
_ADDED_IN_MBART_50 = (
    "af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE sw_KE ta_IN "
    "te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"
)
_M2M_100 = (
    "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht hu hy "
    "id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps pt ro ru "
    "sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu"
)
MBART = tuple(_MBART.split())
MBART_50 = MBART + tuple(_ADDED_IN_MBART_50.split())
# {value of language_codes in tokenizer_config.json: codes}
M2M_100 = {"m2m100": tuple(_M2M_100.split()), "wmt21": ("en", "ha", "is", "ja", "cs", "ru", "zh", "de")}


@dataclasses.dataclass(frozen=True)
class Languages:
    """Holds the languages of a vocabulary.

    ids: {code: id of the language's mark}.
    source, target: the codes of inputs and targets, if a call names none. A tokenizer's files may name a code without
        an id.
    mark_follows: whether the mark follows the end token. If not, it precedes the text.
    """

    ids: Mapping[str, int]
    source: str
    target: str
    mark_follows: bool

    def id(self, code: str) -> int:
        """Returns the id of a language's mark. Raises ConfigError, which suggests similar codes, if there is none."""
        return lookup("language", code, self.ids)


# {class of tokenizer: (codes, the language of inputs that the class assumes, whether marks follow the end token)}
_CLASSES: dict[str, tuple[tuple[str, ...], str, bool]] = {
    "NllbTokenizer": (NLLB, "eng_Latn", False),
    "MBartTokenizer": (MBART, "en_XX", True),
    "MBart50Tokenizer": (MBART_50, "en_XX", False),
    "M2M100Tokenizer": ((), "en", False),
}


def of_class(
    kind: str, entries: Mapping[str, Any], ids: Mapping[str, int], more: Iterable[str] = ()
) -> Languages | None:
    """Returns the languages of a tokenizer; None if its class marks no languages.

    kind: the name of the class in transformers.
    entries: the settings. Honours `src_lang`, `tgt_lang` and, for NLLB, `legacy_behaviour`.
    ids: {piece: id}, which may have more pieces than languages.
    more: further codes, besides those of the published models.
    """
    if kind not in _CLASSES:
        return None
    codes, assumed, mark_follows = _CLASSES[kind]
    source = entries.get("src_lang") or assumed
    legacy = kind == "NllbTokenizer" and bool(entries.get("legacy_behaviour"))
    known = {code: ids[code] for code in (*codes, *more) if code in ids}
    return Languages(known, source, entries.get("tgt_lang") or source, mark_follows or legacy)


def languages_of(vocabulary: Any) -> Languages | None:
    """Returns the languages of a vocabulary; None if its model reads no marks of languages."""
    return getattr(vocabulary, "languages", None)
