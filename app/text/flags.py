"""The English names of flag emoji.

Most flag emoji consist of two letters, which are the code of a country. Unicode has names for these letters, but not
for the flags.
"""

from __future__ import annotations

import re

_COUNTRIES = """
AC Ascension Island;AD Andorra;AE United Arab Emirates;AF Afghanistan;AG Antigua and Barbuda;AI Anguilla;AL Albania
AM Armenia;AO Angola;AQ Antarctica;AR Argentina;AS American Samoa;AT Austria;AU Australia;AW Aruba;AX Åland
AZ Azerbaijan;BA Bosnia and Herzegovina;BB Barbados;BD Bangladesh;BE Belgium;BF Burkina Faso;BG Bulgaria;BH Bahrain
BI Burundi;BJ Benin;BL Saint Barthélemy;BM Bermuda;BN Brunei;BO Bolivia;BQ Caribbean Netherlands;BR Brazil;BS Bahamas
BT Bhutan;BW Botswana;BY Belarus;BZ Belize;CA Canada;CC Cocos Islands;CD Democratic Republic of the Congo
CF Central African Republic;CG Republic of the Congo;CH Switzerland;CI Ivory Coast;CK Cook Islands;CL Chile;CM Cameroon
CN China;CO Colombia;CR Costa Rica;CU Cuba;CV Cape Verde;CW Curaçao;CX Christmas Island;CY Cyprus;CZ Czech Republic
DE Germany;DJ Djibouti;DK Denmark;DM Dominica;DO Dominican Republic;DZ Algeria;EC Ecuador;EE Estonia;EG Egypt
EH Western Sahara;ER Eritrea;ES Spain;ET Ethiopia;EU European Union;FI Finland;FJ Fiji;FK Falkland Islands
FM Micronesia;FO Faroe Islands;FR France;GA Gabon;GB United Kingdom;GD Grenada;GE Georgia;GF French Guiana;GG Guernsey
GH Ghana;GI Gibraltar;GL Greenland;GM Gambia;GN Guinea;GP Guadeloupe;GQ Equatorial Guinea;GR Greece;GT Guatemala
GU Guam;GW Guinea-Bissau;GY Guyana;HK Hong Kong;HN Honduras;HR Croatia;HT Haiti;HU Hungary;IC Canary Islands
ID Indonesia;IE Ireland;IL Israel;IM Isle of Man;IN India;IQ Iraq;IR Iran;IS Iceland;IT Italy;JE Jersey;JM Jamaica
JO Jordan;JP Japan;KE Kenya;KG Kyrgyzstan;KH Cambodia;KI Kiribati;KM Comoros;KN Saint Kitts and Nevis;KP North Korea
KR South Korea;KW Kuwait;KY Cayman Islands;KZ Kazakhstan;LA Laos;LB Lebanon;LC Saint Lucia;LI Liechtenstein
LK Sri Lanka;LR Liberia;LS Lesotho;LT Lithuania;LU Luxembourg;LV Latvia;LY Libya;MA Morocco;MC Monaco;MD Moldova
ME Montenegro;MF Saint Martin;MG Madagascar;MH Marshall Islands;MK North Macedonia;ML Mali;MM Myanmar;MN Mongolia
MO Macau;MP Northern Mariana Islands;MQ Martinique;MR Mauritania;MS Montserrat;MT Malta;MU Mauritius;MV Maldives
MW Malawi;MX Mexico;MY Malaysia;MZ Mozambique;NA Namibia;NC New Caledonia;NE Niger;NF Norfolk Island;NG Nigeria
NI Nicaragua;NL Netherlands;NO Norway;NP Nepal;NR Nauru;NU Niue;NZ New Zealand;OM Oman;PA Panama;PE Peru
PF French Polynesia;PG Papua New Guinea;PH Philippines;PK Pakistan;PL Poland;PM Saint Pierre and Miquelon
PN Pitcairn Islands;PR Puerto Rico;PS Palestine;PT Portugal;PW Palau;PY Paraguay;QA Qatar;RE Réunion;RO Romania
RS Serbia;RU Russia;RW Rwanda;SA Saudi Arabia;SB Solomon Islands;SC Seychelles;SD Sudan;SE Sweden;SG Singapore
SH Saint Helena;SI Slovenia;SJ Svalbard;SK Slovakia;SL Sierra Leone;SM San Marino;SN Senegal;SO Somalia;SR Suriname
SS South Sudan;ST São Tomé and Príncipe;SV El Salvador;SX Sint Maarten;SY Syria;SZ Eswatini;TC Turks and Caicos Islands
TD Chad;TF French Southern Territories;TG Togo;TH Thailand;TJ Tajikistan;TK Tokelau;TL Timor-Leste;TM Turkmenistan
TN Tunisia;TO Tonga;TR Turkey;TT Trinidad and Tobago;TV Tuvalu;TW Taiwan;TZ Tanzania;UA Ukraine;UG Uganda
UN United Nations;US United States;UY Uruguay;UZ Uzbekistan;VA Vatican City;VC Saint Vincent and the Grenadines
VE Venezuela;VG British Virgin Islands;VI United States Virgin Islands;VN Vietnam;VU Vanuatu;WF Wallis and Futuna
WS Samoa;XK Kosovo;YE Yemen;YT Mayotte;ZA South Africa;ZM Zambia;ZW Zimbabwe
"""
_NAMES = {entry[:2]: entry[3:] for entry in _COUNTRIES.strip().replace("\n", ";").split(";")}
_NATIONS = {"gbeng": "England", "gbsct": "Scotland", "gbwls": "Wales"}  # these flags are written with invisible letters
_FLAG = re.compile(
    "[\U0001f1e6-\U0001f1ff]{2}|\U0001f3f4[\U000e0061-\U000e007a]{0,6}(?:\u200d\u2620)?|\U0001f3f3\ufe0f?\u200d?\U0001f308|\U0001f3f3"
)
_FIRST_LETTER, _INVISIBLE = 0x1F1E6, 0xE0000
_SPECIAL = {"\U0001f308": "rainbow flag", "\u2620": "pirate flag"}
_OTHER = {"\U0001f3f4": "black flag", "\U0001f3f3": "white flag"}
MAX_FLAGS = 20


def flag_names(text: str) -> str:
    """Return the names of the first MAX_FLAGS flags of a text: "flag of France, flag of Japan"."""
    return ", ".join([_name(match[0]) for match in _FLAG.finditer(text)][:MAX_FLAGS])


def _name(flag: str) -> str:
    if flag[-1] in _SPECIAL:
        return _SPECIAL[flag[-1]]
    nation = "".join(chr(ord(letter) - _INVISIBLE) for letter in flag[1:] if ord(letter) > _INVISIBLE)
    if nation in _NATIONS:
        return f"flag of {_NATIONS[nation]}"
    if flag[0] in _OTHER:
        return _OTHER[flag[0]]
    code = "".join(chr(ord(letter) - _FIRST_LETTER + ord("A")) for letter in flag)
    return f"flag of {_NAMES[code]}" if code in _NAMES else f"flag {code[0]} {code[1]}"
