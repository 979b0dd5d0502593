"""The language of a text is guessed by its words; English and names stay English."""

from __future__ import annotations

import pytest

from app.api.requests import SpeechBody
from app.text.languages import guess_language, language_tag

pytestmark = pytest.mark.unit

ENGLISH = """
Hello there.
The quick brown fox jumps over the lazy dog.
I have 3 apples.
Los Angeles, Las Vegas and San Diego are in the West.
Kennedy said "Ich bin ein Berliner" in 1963.
Das Boot is a film about a submarine.
Call me at 5 pm.
Ludwig van Beethoven, Johann Sebastian Bach
Café au lait
The café on Rue de la Paix was closed.
He is a die-hard fan of La La Land.
Revenue rose 12.5% to $1.2 billion.
Dr. Smith, Mr. Jones
Le Monde, La Stampa, El País, Die Zeit
OK
Test
Version 2.0.1
I am in San Jose, Costa Rica.
Vincent van Gogh, Leonardo da Vinci and El Greco
Do you know what "carpe diem" means?
Rio de Janeiro, São Paulo
No problem!
Open the file main.py and run it.
Turn left on Main St.
We ate at Le Petit Bistro de la Gare.
Buenos Aires, Santiago de Chile, Ciudad de México
Der Spiegel and Die Zeit are German papers.
Yes
Dinner costs 20 euros.
Merci beaucoup
Hello, je m'appelle Pierre.
It was a dark and stormy night; the rain fell in torrents.
Man on the moon
Order 66
In 2024 all men are born free.
The meeting is on March 5 at 10:30.
Thank you for your order no. 12345.
How much is it? It's $12.50.
Set a timer for 5 minutes.
Play "La Vie en rose" by Édith Piaf.
Navigate to Rue de Rivoli 99.
Directions to El Camino Real
Weather in São Paulo: 25 °C
Dr. Müller has 3 patients.
Meet me at Café de Flore.
Total: 12 items
OK, 5 min.
Via Roma 12, Milano
He said "je t'aime" and left.
The word "und" means "and" in German.
Translate "Wo ist der Bahnhof?" into English.
How do you say "das ist gut" in English?
Angela Merkel, Olaf Scholz, Emmanuel Macron
FC Bayern München 3-2 Real Madrid
Champs-Élysées
Pizza Margherita costs 12 euros.
Als and os are not words
I am
Do, a deer, a female deer
Model 3
status: ok
error 404
Lorem ipsum dolor sit amet
Push to main and open a PR.
SELECT * FROM users WHERE id = 5
import os
def main(): return 0
ja
no
si
U2 and I
Mr. and Mrs. de la Cruz
Leonardo DiCaprio
The Da Vinci Code
Das Kapital
Los Angeles Lakers 110, Las Vegas Aces 102
El Niño
La Niña
De Niro and Van Damme
"""
OTHERS = """
de Das kostet 3,50 € am 24.12.2024
de Guten Tag.
de Guten Morgen, wie geht es Ihnen?
de Der Zug fährt um 14:35 Uhr ab.
de Ich habe 3 Äpfel und 2 Birnen gekauft.
de Am 3. Oktober feiern wir den Tag der Deutschen Einheit.
de Die Temperatur beträgt -5 °C.
de Das Wetter ist heute schön.
de Wir treffen uns morgen um 9 Uhr im Büro.
de In der Stadt war es am Abend warm.
fr Le train part à 14 h 35.
fr Bonjour, comment allez-vous ?
fr J'ai acheté 3 pommes et 2 poires.
fr Il fait -5 °C aujourd'hui.
fr C'est la vie, mais je ne suis pas content.
fr Les enfants jouent dans le jardin.
fr Nous sommes le 14 juillet 2024.
es El tren sale a las 14:35.
es Hola, ¿cómo estás?
es Tengo 3 manzanas y 2 peras.
es El 1º de mayo es fiesta.
es Cuesta 3,50 € en la tienda.
es Buenos días, me llamo Juan y vivo en Madrid.
it Il treno parte alle 14:35.
it Buongiorno, come stai?
it Ho comprato 3 mele e 2 pere.
it Costa 3,50 € al chilo.
it Oggi è una bella giornata.
pt O trem sai às 14:35.
pt Olá, como você está?
pt Comprei 3 maçãs e 2 peras para a minha mãe.
pt Hoje são 25 de abril.
pt Não sei o que dizer.
nl De trein vertrekt om 14:35 uur.
nl Goedemorgen, hoe gaat het met je?
nl Ik heb 3 appels en 2 peren gekocht.
nl Het kost 3,50 euro.
pl Pociąg odjeżdża o 14:35.
pl Dzień dobry, jak się masz?
pl Kupiłem 3 jabłka i 2 gruszki.
pl To kosztuje 20 złotych.
sv Tåget går klockan 14:35.
sv God morgon, hur mår du idag?
sv Jag har köpt 3 äpplen och 2 päron.
sv Det kostar 50 kronor.
da Toget kører klokken 14:35 fra København.
da Jeg har købt 3 æbler og 2 pærer.
da Hvad hedder du, og hvor kommer du fra?
nb Jeg har kjøpt 3 epler og 2 pærer, men ikke noe brød.
nb Hva heter du, og hvor kommer du fra nå?
fi Juna lähtee kello 14:35.
fi Hyvää huomenta, mitä kuuluu?
fi Ostin 3 omenaa ja 2 päärynää, mutta ei ole leipää.
cs Vlak odjíždí v 14:35.
cs Dobrý den, jak se máte?
cs Koupil jsem 3 jablka a 2 hrušky.
tr Tren saat 14:35'te kalkıyor.
tr Merhaba, nasılsın?
tr Bugün hava çok güzel.
tr 3 elma ve 2 armut aldım.
ro Bună ziua, ce mai faceți?
ro Trenul pleacă la ora 14:35 din București.
hu Jó reggelt, hogy vagy?
hu A vonat 14:35-kor indul, és nem áll meg.
cmn 请看 https://github.com/foo/bar 这个项目。
cmn 我在GitHub上提交了一个pull request
ja 今日は GitHub の repository を見る
ru Смотри https://example.com/some/long/path?query=1 тут
cmn 用 `git commit -m "message"` 提交
ko 이 링크를 보세요 https://example.com/hello-world
es La niña come pan.
de DAS KOSTET 20 EURO.
pt O café está na mesa.
fr Le prix est de 1 234,56 €.
it Il prezzo è di 20 euro.
nl Wat is dat?
cmn 请运行 pip install tts-server 然后打开 http://localhost:8000/docs
ja [ドキュメント](https://docs.example.com/latest/getting-started.html)を見て
cmn 发邮件到 someone.with.long.name@example.com 吧
ru Файл `src/components/Button/index.tsx` удалён
ca Bon dia, com està? Avui és el meu aniversari.
id Terima kasih, saya akan pergi ke pasar hari ini.
de Hallo, wie geht's dir?
de Der Termin ist am 5. März um 10:30 Uhr.
de Bitte rufen Sie mich unter 030 123456 an.
de Das Paket wiegt 2,5 kg und kostet 12,99 €.
de Es sind 20 °C draußen.
de Ihr Kontostand beträgt 1.234,56 €.
de Die Besprechung wurde auf Montag verschoben.
de Vielen Dank für Ihre Bestellung Nr. 12345.
de Heute ist der 24. Dezember 2024.
de Achtung! Zug 4711 hat 15 Minuten Verspätung.
fr Il y a 3 chats dans la maison.
fr Votre commande n° 12345 est prête.
fr Le 14 juillet 1789, le peuple prit la Bastille.
fr Rendez-vous à 15h30.
fr Ça coûte 12,50 €.
fr Merci pour votre message.
fr La température est de 20 °C.
es Son las 3 de la tarde.
es La reunión es el 5 de marzo a las 10:30.
es ¿Cuánto cuesta? Cuesta 12,50 €.
es Gracias por su compra.
es Su pedido número 12345 está listo.
es 1º de mayo de 2024, día del trabajo
es Hace 20 grados en Madrid.
it Sono le 3 del pomeriggio.
it La riunione è il 5 marzo alle 10:30.
it Quanto costa? Costa 12,50 €.
it Grazie per il tuo ordine.
it Il suo ordine numero 12345 è pronto.
pt São 3 horas da tarde.
pt A reunião é no dia 5 de março às 10:30.
pt Quanto custa? Custa R$ 12,50.
pt Obrigado pela sua compra.
pt O 1º lugar foi para o Brasil.
nl Het is 3 uur in de middag.
nl De vergadering is op 5 maart om 10:30 uur.
nl Hoeveel kost het? Het kost € 12,50.
nl Bedankt voor uw bestelling.
pl Jest godzina 15:30.
pl Spotkanie jest 5 marca o 10:30.
pl Ile to kosztuje? 12,50 zł.
pl Dziękuję za zamówienie nr 12345.
sv Mötet är den 5 mars klockan 10:30.
sv Hur mycket kostar det? 12,50 kr.
sv Tack för din beställning.
da Mødet er den 5. marts klokken 10:30.
da Hvor meget koster det? 12,50 kr.
da Tak for din bestilling.
nb Møtet er 5. mars klokken 10:30.
nb Hvor mye koster det? 12,50 kr.
nb Takk for bestillingen din.
fi Paljonko se maksaa? 12,50 €.
cs Schůzka je 5. března v 10:30.
cs Kolik to stojí? 12,50 Kč.
cs Děkujeme za vaši objednávku.
tr Toplantı 5 Mart'ta saat 10:30'da.
tr Ne kadar? 12,50 TL.
tr Siparişiniz için teşekkür ederiz.
hu A találkozó március 5-én 10:30-kor lesz.
ro Întâlnirea este pe 5 martie la ora 10:30.
"""


@pytest.mark.parametrize("text", ENGLISH.strip().split("\n"))
def test_english_texts_and_names_are_recognised_as_english(text: str) -> None:
    assert guess_language(text) in (None, "en")


@pytest.mark.parametrize("row", OTHERS.strip().split("\n"))
def test_language_is_guessed(row: str) -> None:
    language, _, text = row.partition(" ")
    assert guess_language(text) == language


@pytest.mark.parametrize(
    "text", ["", " ", "123 ...", "https://example.com/der/die/das/und/ist", "`der die das und`", "\ud83d"]
)
def test_text_without_words_has_no_language(text: str) -> None:
    assert guess_language(text) is None


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("English", "en"),
        ("german", "de"),
        ("Deutsch", "de"),
        ("français", "fr"),
        ("Brazilian Portuguese", "pt-br"),
        ("Español", "es"),
        ("Türkçe", "tr"),
        ("Mandarin", "cmn"),
        ("en_US", "en_US"),
        ("EN-us", "EN-us"),
        ("pt-br", "pt-br"),
        ("klingon", "klingon"),
        ("", None),
        ("auto", None),
        ("Auto", None),
        ("Auto-detect", None),
        ("und", None),
        ("*", None),
        ("None", None),
        ("日本語", "ja"),
        ("中文", "cmn"),
        ("Русский", "ru"),
        ("हिन्दी", "hi"),
        ("한국어", "ko"),
        ("العربية", "ar"),
        ("українська", "uk"),
        ("Ελληνικά", "el"),
        ("Franc\u0327ais", "fr"),
        ("English (US)", "en-us"),
        ("English (United Kingdom)", "en-gb"),
        ("english us", "en-us"),
        ("Português (Brasil)", "pt-br"),
        ("Spanish (Latin America)", "es-419"),
        ("Chinese (Simplified)", "cmn"),
        ("German - Austria", "de-at"),
        ("eng", "en"),
        ("DEU", "de"),
        ("fre", "fr"),
        ("zho", "cmn"),
        ("iw", "he"),
        ("eng-US", "en-us"),
        ("de_DE.UTF-8", "de_DE"),
        ("ca_ES@valencia", "ca_ES"),
        ("en-US,en;q=0.9", "en-US"),
        ("zh-Hans-CN", "zh-Hans-CN"),
        ("x-klingon", "x-klingon"),
    ],
)
def test_languages_have_names(name: str, tag: str | None) -> None:
    assert language_tag(name) == tag
    assert SpeechBody.model_validate({"input": "Hello.", "voice": "alloy", "language": name}).language == tag
