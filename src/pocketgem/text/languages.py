"""Languages by their two letters, as programs name them, and in English, as prompts do."""

from __future__ import annotations

import re

from pocketgem.errors import PromptError

# ISO 639-1, those that are spoken; a few longer codes that clients send.
_NAMES = """
af Afrikaans|am Amharic|ar Arabic|as Assamese|az Azerbaijani|ba Bashkir|be Belarusian|bg Bulgarian|bn Bengali|
bo Tibetan|br Breton|bs Bosnian|ca Catalan|ceb Cebuano|cs Czech|cy Welsh|da Danish|de German|el Greek|en English|
es Spanish|et Estonian|eu Basque|fa Persian|fi Finnish|fil Filipino|fo Faroese|fr French|fy Frisian|ga Irish|
gd Scottish Gaelic|gl Galician|gu Gujarati|ha Hausa|haw Hawaiian|he Hebrew|hi Hindi|hr Croatian|ht Haitian Creole|
hu Hungarian|hy Armenian|id Indonesian|ig Igbo|is Icelandic|it Italian|ja Japanese|jv Javanese|ka Georgian|kk Kazakh|
km Khmer|kn Kannada|ko Korean|ku Kurdish|ky Kyrgyz|la Latin|lb Luxembourgish|ln Lingala|lo Lao|lt Lithuanian|
lv Latvian|mg Malagasy|mi Maori|mk Macedonian|ml Malayalam|mn Mongolian|mr Marathi|ms Malay|mt Maltese|my Burmese|
ne Nepali|nl Dutch|nn Norwegian Nynorsk|no Norwegian|nb Norwegian|ny Chichewa|oc Occitan|or Odia|pa Punjabi|
pl Polish|ps Pashto|pt Portuguese|ro Romanian|ru Russian|rw Kinyarwanda|sa Sanskrit|sd Sindhi|si Sinhala|sk Slovak|
sl Slovenian|sm Samoan|sn Shona|so Somali|sq Albanian|sr Serbian|st Sesotho|su Sundanese|sv Swedish|sw Swahili|
ta Tamil|te Telugu|tg Tajik|th Thai|tk Turkmen|tl Tagalog|tr Turkish|tt Tatar|ug Uyghur|uk Ukrainian|ur Urdu|
uz Uzbek|vi Vietnamese|wo Wolof|xh Xhosa|yi Yiddish|yo Yoruba|yue Cantonese|zh Chinese|zu Zulu
"""
LANGUAGES = dict(entry.strip().split(" ", 1) for entry in _NAMES.strip().split("|"))
_NAME = re.compile(r"[^\W\d_][\w' ()-]{1,39}")


def language_name(language: str) -> str:
    """``"en"``, ``"en-GB"`` or ``"english"`` -> ``"English"``; a name that is in no table is taken as it is.

    Raises PromptError for what is no name of a language.
    """
    code = re.split("[-_]", language.strip().lower())[0]
    if code in LANGUAGES:
        return LANGUAGES[code]
    if len(code) == 2 or not _NAME.fullmatch(language.strip()):
        raise PromptError(f"{language[:60]!r} is no language; give its two letters, such as 'de', or its English name")
    name = language.strip()
    return name.title() if name.islower() else name
