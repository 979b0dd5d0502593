"""Read-only tables for English text: units, currencies, abbreviations, months, names before a Roman numeral."""

from __future__ import annotations


def _table(rows: str) -> dict[str, str]:
    """Parse `key = value` entries, separated by line breaks or semicolons."""
    pairs = (entry.split("=") for entry in rows.replace("\n", ";").split(";") if entry.strip())
    return {key.strip(): value.strip() for key, value in pairs}


def _forms(rows: str) -> dict[str, tuple[str, str]]:
    """Parse `key = singular plural` entries. `_` stands for a space inside a form.

    If an entry has no plural, the plural is the singular with an "s".
    """
    forms = {}
    for key, value in _table(rows).items():
        singular, _, plural = value.partition(" ")
        forms[key] = (singular.replace("_", " "), (plural or f"{singular}s").replace("_", " "))
    return forms


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Units after a number: symbol -> (singular, plural).
UNITS = _forms(
    """
    km = kilometer; m = meter; cm = centimeter; mm = millimeter; μm = micrometer; um = micrometer; nm = nanometer
    ft. = foot feet; yd. = yard; yds. = yard; cm. = centimeter; mm. = millimeter; km. = kilometer; kg. = kilogram
    gal. = gallon; qt. = quart; mi. = mile; mi = mile; ft = foot feet; yd = yard; yds = yard
    in. = inch inches; in = inch inches; ly = light_year
    kg = kilogram; g = gram; mg = milligram; mcg = microgram; μg = microgram; lb = pound; lbs = pound; lb. = pound
    lbs. = pound; oz = ounce; oz. = ounce; kgs = kilogram
    l = liter; L = liter; ml = milliliter; mL = milliliter; dl = deciliter; cl = centiliter; gal = gallon
    qt = quart
    pt = pint; tbsp = tablespoon; tbsp. = tablespoon; Tbsp = tablespoon; tsp = teaspoon; tsp. = teaspoon
    tbs = tablespoon
    fl oz = fluid_ounce; cc = c_c c_c
    °C = degree_Celsius degrees_Celsius; °F = degree_Fahrenheit degrees_Fahrenheit
    °K = degree_Kelvin degrees_Kelvin
    ° C = degree_Celsius degrees_Celsius; ° F = degree_Fahrenheit degrees_Fahrenheit; ° = degree
    °N = degree_north degrees_north; °S = degree_south degrees_south; °E = degree_east degrees_east
    °W = degree_west degrees_west
    km/h = kilometer_per_hour kilometers_per_hour; kph = kilometer_per_hour kilometers_per_hour
    kmh = kilometer_per_hour kilometers_per_hour
    mph = mile_per_hour miles_per_hour; m/s = meter_per_second meters_per_second
    km/s = kilometer_per_second kilometers_per_second; ft/s = foot_per_second feet_per_second
    mpg = mile_per_gallon miles_per_gallon; mi/h = mile_per_hour miles_per_hour
    m/s² = meter_per_second_squared meters_per_second_squared
    m/s^2 = meter_per_second_squared meters_per_second_squared
    Hz = hertz hertz; kHz = kilohertz kilohertz; KHz = kilohertz kilohertz; MHz = megahertz megahertz
    GHz = gigahertz gigahertz
    W = watt; kW = kilowatt; MW = megawatt; GW = gigawatt; kWh = kilowatt_hour; Wh = watt_hour; MWh = megawatt_hour
    mAh = milliamp_hour; mA = milliamp; V = volt; kV = kilovolt; mV = millivolt; Ω = ohm; kΩ = kiloohm
    KB = kilobyte; kB = kilobyte; MB = megabyte; GB = gigabyte; TB = terabyte; PB = petabyte
    KiB = kibibyte; MiB = mebibyte; GiB = gibibyte; TiB = tebibyte
    kbps = kilobit_per_second kilobits_per_second; Kbps = kilobit_per_second kilobits_per_second
    Mbps = megabit_per_second megabits_per_second; Gbps = gigabit_per_second gigabits_per_second
    Mb/s = megabit_per_second megabits_per_second; Gb/s = gigabit_per_second gigabits_per_second
    MB/s = megabyte_per_second megabytes_per_second; GB/s = gigabyte_per_second gigabytes_per_second
    KB/s = kilobyte_per_second kilobytes_per_second; kB/s = kilobyte_per_second kilobytes_per_second
    s = second; sec = second; sec. = second; secs = second; ms = millisecond; μs = microsecond; us = microsecond
    ns = nanosecond; min = minute; min. = minute; mins = minute; h = hour; hr = hour; hr. = hour; hrs = hour
    hrs. = hour; wk = week; wks = week; mo = month; mos = month; yr = year; yrs = year; yr. = year; yrs. = year
    kcal = kilocalorie; cal = calorie; kJ = kilojoule; J = joule; kN = kilonewton; Pa = pascal; kPa = kilopascal
    hPa = hectopascal; MPa = megapascal; psi = p_s_i p_s_i; mmHg = millimeter_of_mercury millimeters_of_mercury
    GPa = gigapascal; atm = atmosphere; hp = horsepower horsepower; bhp = brake_horsepower brake_horsepower
    kA = kiloamp
    MΩ = megaohm; μF = microfarad; nF = nanofarad; pF = picofarad; mH = millihenry millihenries
    THz = terahertz terahertz
    Mb = megabit; Gb = gigabit; Kb = kilobit; TB/s = terabyte_per_second terabytes_per_second; ha = hectare
    nmi = nautical_mile
    mol = mole; mmol = millimole; μmol = micromole; nmol = nanomole; Å = angstrom; μL = microliter; μl = microliter
    μA = microamp; μV = microvolt; μW = microwatt; eV = electronvolt; keV = kiloelectronvolt; MeV = megaelectronvolt
    GeV = gigaelectronvolt; MJ = megajoule; GJ = gigajoule; GWh = gigawatt_hour; TWh = terawatt_hour
    mSv = millisievert; MBq = megabecquerel; kBq = kilobecquerel; mT = millitesla
    dB = decibel; px = pixel; dpi = d_p_i d_p_i; fps = frame_per_second frames_per_second; rpm = r_p_m r_p_m
    bpm = beat_per_minute beats_per_minute; wpm = word_per_minute words_per_minute
    ppm = part_per_million parts_per_million; ppb = part_per_billion parts_per_billion
    sq ft = square_foot square_feet; sq. ft. = square_foot square_feet; sqft = square_foot square_feet
    sq mi = square_mile square_miles; sq m = square_meter square_meters; sq km = square_kilometer square_kilometers
    m² = square_meter; km² = square_kilometer; cm² = square_centimeter; mm² = square_millimeter
    ft² = square_foot square_feet
    mi² = square_mile; m³ = cubic_meter; cm³ = cubic_centimeter; ft³ = cubic_foot cubic_feet; mm³ = cubic_millimeter
    m^2 = square_meter; km^2 = square_kilometer; m^3 = cubic_meter; cm^3 = cubic_centimeter
    ft^2 = square_foot square_feet
    mg/dL = milligram_per_deciliter milligrams_per_deciliter; mg/kg = milligram_per_kilogram milligrams_per_kilogram
    mg/L = milligram_per_liter milligrams_per_liter; g/L = gram_per_liter grams_per_liter
    kg/m³ = kilogram_per_cubic_meter kilograms_per_cubic_meter; lb/ft = pound_per_foot pounds_per_foot
    tok/s = token_per_second tokens_per_second; tokens/s = token_per_second tokens_per_second
    bps = basis_point
    mM = millimolar millimolar; μM = micromolar micromolar; Nm = newton_meter; nM = nanomolar nanomolar
    req/s = request_per_second requests_per_second; it/s = iteration_per_second iterations_per_second
    """
)

# If one of these words follows a slash, the slash is read as "per": $15/hr, 20 mg/day.
PER = _table(
    """
    h = hour; hr = hour; hour = hour; d = day; day = day; wk = week; week = week; mo = month; month = month
    yr = year
    year = year; s = second; sec = second; second = second; min = minute; minute = minute; night = night
    person = person
    kg = kilogram; lb = pound; g = gram; oz = ounce; gal = gallon; gallon = gallon; L = liter; l = liter
    unit = unit
    user = user; seat = seat; each = each; month. = month; mi = mile; mile = mile; km = kilometer
    sqft = square foot
    kWh = kilowatt hour; share = share; barrel = barrel; ton = ton; game = game; head = head; item = item
    token = token
    """
)

# Sign or code of a currency -> names of the unit and of its hundredth: (unit, units, hundredth, hundredths).
CURRENCIES = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "US$": ("U S dollar", "U S dollars", "cent", "cents"),
    "A$": ("Australian dollar", "Australian dollars", "cent", "cents"),
    "C$": ("Canadian dollar", "Canadian dollars", "cent", "cents"),
    "HK$": ("Hong Kong dollar", "Hong Kong dollars", "cent", "cents"),
    "NZ$": ("New Zealand dollar", "New Zealand dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
    "¥": ("yen", "yen", "", ""),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "₩": ("won", "won", "", ""),
    "₽": ("ruble", "rubles", "kopeck", "kopecks"),
    "₿": ("bitcoin", "bitcoin", "", ""),
    "₺": ("lira", "lira", "", ""),
    "₫": ("dong", "dong", "", ""),
    "₪": ("shekel", "shekels", "", ""),
    "R$": ("real", "reais", "centavo", "centavos"),
    "USD": ("U S dollar", "U S dollars", "cent", "cents"),
    "EUR": ("euro", "euros", "cent", "cents"),
    "GBP": ("British pound", "British pounds", "penny", "pence"),
    "JPY": ("yen", "yen", "", ""),
    "CAD": ("Canadian dollar", "Canadian dollars", "cent", "cents"),
    "AUD": ("Australian dollar", "Australian dollars", "cent", "cents"),
    "CHF": ("Swiss franc", "Swiss francs", "centime", "centimes"),
    "CNY": ("yuan", "yuan", "", ""),
    "RMB": ("yuan", "yuan", "", ""),
    "Rs.": ("rupee", "rupees", "paisa", "paise"),
    "Rs": ("rupee", "rupees", "paisa", "paise"),
    "Fr.": ("Swiss franc", "Swiss francs", "centime", "centimes"),
    "kr": ("krona", "kronor", "öre", "öre"),
    "zł": ("zloty", "zlotys", "grosz", "groszy"),
    "Kč": ("koruna", "korunas", "", ""),
    "SEK": ("Swedish krona", "Swedish kronor", "öre", "öre"),
    "NOK": ("Norwegian krone", "Norwegian kroner", "øre", "øre"),
    "DKK": ("Danish krone", "Danish kroner", "øre", "øre"),
    "PLN": ("zloty", "zlotys", "grosz", "groszy"),
    "INR": ("rupee", "rupees", "paisa", "paise"),
    "BTC": ("bitcoin", "bitcoin", "", ""),
    "ETH": ("ether", "ether", "", ""),
    "S$": ("Singapore dollar", "Singapore dollars", "cent", "cents"),
    "NT$": ("New Taiwan dollar", "New Taiwan dollars", "", ""),
    "MX$": ("Mexican peso", "Mexican pesos", "centavo", "centavos"),
    "Rp": ("rupiah", "rupiah", "", ""),
    "IDR": ("rupiah", "rupiah", "", ""),
    "VND": ("dong", "dong", "", ""),
    "₴": ("hryvnia", "hryvnias", "kopiyka", "kopiykas"),
    "₦": ("naira", "naira", "kobo", "kobo"),
    "₱": ("peso", "pesos", "centavo", "centavos"),
    "฿": ("baht", "baht", "satang", "satang"),
    "₸": ("tenge", "tenge", "", ""),
    "₾": ("lari", "lari", "", ""),
    "₡": ("colon", "colones", "", ""),
    "₵": ("cedi", "cedis", "", ""),
    "KRW": ("won", "won", "", ""),
    "RUB": ("ruble", "rubles", "kopeck", "kopecks"),
    "BRL": ("real", "reais", "centavo", "centavos"),
    "ZAR": ("rand", "rand", "cent", "cents"),
    "THB": ("baht", "baht", "satang", "satang"),
    "MXN": ("Mexican peso", "Mexican pesos", "centavo", "centavos"),
    "CZK": ("koruna", "korunas", "", ""),
    "HUF": ("forint", "forints", "", ""),
    "ILS": ("shekel", "shekels", "", ""),
    "AED": ("dirham", "dirhams", "", ""),
    "SGD": ("Singapore dollar", "Singapore dollars", "cent", "cents"),
    "HKD": ("Hong Kong dollar", "Hong Kong dollars", "cent", "cents"),
    "NZD": ("New Zealand dollar", "New Zealand dollars", "cent", "cents"),
}
SCALES = _table(
    """
    k = thousand; K = thousand; m = million; M = million; mn = million; mm = million; MM = million; mil = million
    b = billion; B = billion; bn = billion; Bn = billion; t = trillion; T = trillion; tn = trillion; trn = trillion
    thousand = thousand; million = million; billion = billion; trillion = trillion; hundred = hundred; grand = grand
    L = lakh; lakh = lakh; lakhs = lakh; crore = crore; crores = crore; Cr = crore
    Thousand = thousand; Million = million; Billion = billion; Trillion = trillion
    """
)

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
MONTH_BY_PREFIX = {name[:3]: name for name in MONTHS}
WEEKDAYS = _table(
    """
    Mon = Monday; Tue = Tuesday; Tues = Tuesday; Wed = Wednesday; Weds = Wednesday; Thu = Thursday; Thur = Thursday
    Thurs = Thursday; Fri = Friday; Sat = Saturday; Sun = Sunday
    """
)

# Titles, which are expanded only before a capitalised name.
TITLES = _table(
    """
    Mr = Mister; Mrs = Missus; Ms = Miz; Prof = Professor; Rev = Reverend; Hon = Honorable; Gen = General
    Col = Colonel
    Lt = Lieutenant; Sgt = Sergeant; Capt = Captain; Cpl = Corporal; Maj = Major; Cmdr = Commander; Adm = Admiral
    Gov = Governor; Sen = Senator; Rep = Representative; Pres = President; Supt = Superintendent; Messrs = Messieurs
    Mt = Mount; Ft = Fort; Fr = Father; Det = Detective; Insp = Inspector; Atty = Attorney; Drs = Doctors
    """
)
# Abbreviations for streets, which are expanded only after a capitalised name.
STREETS = _table(
    """
    St = Street; Ave = Avenue; Av = Avenue; Blvd = Boulevard; Rd = Road; Ln = Lane; Ct = Court; Pl = Place
    Sq = Square
    Hwy = Highway; Pkwy = Parkway; Dr = Drive; Ter = Terrace; Cir = Circle; Trl = Trail; Expy = Expressway
    Fwy = Freeway
    """
)
_OPENING = ("e.g.", "i.e.", "etc.", "approx.", "est.", "cf.", "vs.", "incl.")
# Abbreviations that are expanded at any place. The full stop is part of the abbreviation.
ABBREVIATIONS = _table(
    """
    e.g. = for example; i.e. = that is; eg. = for example; ie. = that is; etc. = et cetera; vs. = versus
    vs = versus; v. = versus
    approx. = approximately; est. = established; dept. = department; Dept. = Department; govt. = government
    Jr. = Junior; Sr. = Senior; Inc. = Incorporated; Corp. = Corporation; Ltd. = Limited; Co. = Company
    Bros. = Brothers
    et al. = and others; cf. = compare; viz. = namely; ca. = circa; a.k.a. = also known as; A.K.A. = also known as
    incl. = including; excl. = excluding; avg. = average; misc. = miscellaneous
    Feb. = February; Aug. = August; Sept. = September; Sep. = September; Oct. = October; Nov. = November
    Dec. = December
    Ave. = Avenue; Blvd. = Boulevard; Rd. = Road; Pkwy. = Parkway; Hwy. = Highway; Apt. = Apartment; Ste. = Suite
    ext. = extension; Ext. = Extension; tel. = telephone; Tel. = Telephone; Univ. = University; Assoc. = Association
    Intl. = International; Natl. = National; Mgr. = Manager; Asst. = Assistant; Esq. = Esquire; lbs. = pounds
    tbsp. = tablespoons; tsp. = teaspoons; oz. = ounces; hrs. = hours; mins. = minutes; secs. = seconds
    yrs. = years
    pts. = points; Ph.D. = PhD; M.D. = MD; B.A. = BA; M.A. = MA; B.Sc. = BSc; M.Sc. = MSc; B.S. = BS; M.S. = MS
    a.m. = AM; p.m. = PM; A.M. = AM; P.M. = PM; A.D. = AD; B.C. = BC; B.C.E. = BCE; C.E. = CE; P.S. = P S
    """
)
ABBREVIATIONS |= {key.capitalize(): words.capitalize() for key, words in ABBREVIATIONS.items() if key in _OPENING}
# Abbreviations that are expanded only before a number: No. 5, pp. 10-15.
BEFORE_NUMBER = _table(
    """
    No = number; Nos = numbers; nos = numbers; pop = population; Vol = volume; vol = volume; Vols = volumes
    p = page; pp = pages
    Fig = figure; fig = figure; Figs = figures; figs = figures; Ch = chapter; ch = chapter; Sec = section
    sec = section
    Eq = equation; eq = equation; Art = article; art = article; Ver = version; ver = version; Ep = episode
    ep = episode
    Apt = apartment; Ste = suite; Rm = room; Op = opus; op = opus; approx = approximately; Lv = level; Lvl = level
    Chs = chapters; chs = chapters; Secs = sections; secs = sections; vv = verses; Bldg = building; bldg = building
    Fl = floor; Abs = Absatz; min = minimum; max = maximum; Min = minimum; Max = maximum; ed = edition; Rte = route
    Hwy = highway
    lvl = level; Ext = extension; ext = extension; Pt = part; pt = part; Ln = line; Tbl = table; App = appendix
    """
)

STATES = _table(
    """
    AL = Alabama; AK = Alaska; AZ = Arizona; AR = Arkansas; CA = California; CO = Colorado; CT = Connecticut
    DE = Delaware
    FL = Florida; GA = Georgia; HI = Hawaii; ID = Idaho; IL = Illinois; IN = Indiana; IA = Iowa; KS = Kansas
    KY = Kentucky
    LA = Louisiana; ME = Maine; MD = Maryland; MA = Massachusetts; MI = Michigan; MN = Minnesota; MS = Mississippi
    MO = Missouri; MT = Montana; NE = Nebraska; NV = Nevada; NH = New Hampshire; NJ = New Jersey; NM = New Mexico
    NY = New York; NC = North Carolina; ND = North Dakota; OH = Ohio; OK = Oklahoma; OR = Oregon; PA = Pennsylvania
    RI = Rhode Island; SC = South Carolina; SD = South Dakota; TN = Tennessee; TX = Texas; UT = Utah; VT = Vermont
    VA = Virginia; WA = Washington; WV = West Virginia; WI = Wisconsin; WY = Wyoming; DC = D C
    """
)

# After a word in NUMBERED_THINGS, a Roman numeral is read as a cardinal (Chapter four). After a name in RULERS, a Roman
# numeral is read as an ordinal (Henry the eighth).
NUMBERED_THINGS = _words(
    "War Chapter Part Act Scene Volume Book Section Phase Type Stage Title Article Appendix Figure Table Bowl Grade "
    "Class "
    "Level Episode Season Mark Unit Lesson Round Group Version Fantasy Division Factor Schedule Olympiad Movement "
    "Canto "
    "Quest Symphony Rocky Godfather Apollo Gemini Saturn Titan Corps Region Zone Area Tier Paragraph"
)
RULERS = _words(
    "Henry Louis George Edward Elizabeth Charles James Richard William Mary Philip Catherine Paul Benedict Pius Leo "
    "Gregory Innocent Clement Urban Alexander Nicholas Peter Frederick Wilhelm Napoleon Ferdinand Francis Joseph "
    "Leopold "
    "Gustav Christian Haakon Harald Olav Margrethe Beatrix Juan Alfonso Felipe Carlos Pedro Manuel Otto Rudolf Ivan "
    "Xerxes "
    "Darius Ramses Ramesses Ptolemy Cleopatra Constantine Justinian Theodosius Sixtus Boniface Julius Robert David "
    "Anne Victoria Umberto Emmanuel Albert Baudouin Mehmed Murad Selim Suleiman Harold Stephen John Rama"
)

# A number from 1100 to 2099 before one of these words is a count and not a year.
COUNTED = _words(
    "people persons men women children kids users customers clients members employees workers students teachers "
    "soldiers "
    "troops fans followers subscribers visitors guests residents households homes houses units items pieces copies "
    "words "
    "characters tokens lines pages files bytes pixels points votes seats rooms beds cars miles kilometers meters "
    "metres "
    "feet inches yards pounds kilograms grams ounces liters calories watts volts degrees dollars euros cents hours "
    "minutes "
    "seconds days weeks months years times steps reps sets cases deaths samples images parameters requests messages "
    "emails "
    "tickets orders shares jobs species trees acres hectares tons tonnes more fewer less percent milligrams rows "
    "entries "
    "milliseconds attendees participants players games questions answers examples books songs movies stars reviews "
    "attempts"
)
# A number after one of these words is a label ("Boeing seven forty seven") and not a count.
LABELLED = _words(
    "boeing airbus porsche highway route interstate room flight apartment suite http error status interstate us i "
    "gate "
    "channel bus train hwy rt bldg building hall locker peugeot chinook rtx gtx rx xbox office "
    "epyc xeon ryzen threadripper radeon geforce"
)
# The names of language models. After one of these names, "8B" is read "eight B".
LANGUAGE_MODELS = _words(
    "llama codellama mistral mixtral qwen gemma phi falcon yi deepseek gpt claude gemini olmo opt bloom vicuna alpaca "
    "mpt pythia smollm granite nemotron command glm chatglm internlm baichuan stablelm orpheus whisper llava "
    "starcoder minicpm kimi"
)
# After one of these words, "4B" is a number and a letter, not four billion.
LETTERED = _words(
    "apartment apt suite ste unit room gate seat row section terminal platform block exhibit class grade level flat "
    "bus exit figure fig panel building wing appendix part zone gates seats size cup question problem exercise"
)
# Before one of these nouns, the unit of a measure is read in the singular: a 65W charger, 16GB RAM.
MEASURED = _words(
    "charger ram ssd hdd drive laptop monitor screen display cable adapter bulb battery cpu gpu memory card file "
    "disk motor "
    "engine bag bottle can jar pack race run hike walk swim ride radius limit delay window pipe rope board nail "
    "tank dose "
    "tablet pill steak burger processor router connection download model lens camera gun caliber sprint dash "
    "marathon relay record tv"
)
# After one of these words, "3.11" is a version and is read "three point eleven". After other words, "3.11" is read
# "three point one one".
VERSIONED = _words(
    "python java node ios ipados android ubuntu debian fedora macos php ruby go rust kotlin swift perl version "
    "release cuda "
    "django rails react angular vue postgres postgresql mysql redis kernel linux pytorch tensorflow numpy c++ gcc "
    "llvm "
    "clang windows firefox chrome safari typescript kubernetes docker chapter section figure table rfc watchos"
)
# If one of these words follows a measure, the measure is not an adjective.
FUNCTION_WORDS = _words(
    "a an the of in on at by for to from with and or but nor as is are was were be been has have had will would "
    "could "
    "should may might must do does did than then that this these those it its he she they we you i per if when while "
    "because so not no more less fewer off away each apiece total today yesterday tomorrow now later ago down up "
    "out over "
    "under into between among after before since until about around versus plus minus times there here who which "
    "what "
    "where how why all only just also too very his her their our your my"
)
# Words that usually begin a sentence. If one of these words follows an abbreviation ("7 p.m. The"), a new sentence
# begins.
STARTERS = _words(
    "The He She It We They I You This That These Those There Then But And So If In At On My Our His Her Their Its "
    "Your A An "
    "What When Where Who Why How However After Before Please Let No Not Yes For From As All Some Many Most Everyone "
    "Now "
    "Here Bring Call Meet See Do Don't Are Is Was Were Can Could Would Will Did Does Have Has With While Since "
    "Although "
    "Next Finally Also Once Meanwhile Instead Don't It's I'm I'll We're We'll They're That's There's Let's"
)

TOP_LEVEL_DOMAINS = _words(
    "com org net edu gov io ai dev app uk de fr tv info xyz co eu ca gg nl se ch jp au biz mil int tech blog"
)
# Endings of file names and domains that are pronounced as words. Endings that are not in this table are spelled: "dot
# UK", "dot JS".
PRONOUNCED_ENDINGS = _words(
    "com org net gov info dev app co blog tech biz mil int py json yaml toml bat zip doc ini log bin lock env conf "
    "proto vue"
)
FILE_ENDINGS = _words(
    "py js ts jsx tsx json yaml yml toml md txt csv tsv html htm css scss xml pdf doc docx xls xlsx ppt pptx zip "
    "tar gz rar "
    "exe dll bat sh ps1 cpp hpp java rb go rs php sql db sqlite log ini cfg conf env lock png jpg jpeg gif svg webp "
    "mp3 mp4 "
    "wav flac ogg avi mov mkv bin iso apk dmg ipynb proto vue swift kt lua"
)
SPOKEN_ENDINGS = {"yml": "yaml", "jpg": "jpeg", "mp3": "MP three", "mp4": "MP four", "ps1": "PS one", "txt": "text"}

# After one of these words, "80s" is a decade. After other words, "80s" may mean 80 seconds.
BEFORE_DECADES = _words("the his her their my our your early mid late mid- early- late- roaring these those")
# Capitalised words after which "St." means "Saint" and "Dr." means "Doctor", not "Street" and "Drive".
NOT_A_STREET_NAME = _words(
    "Port Mount Mt. Fort Ft. Old Ask Call Visit See Meet Dear Hello Hi Hey Thanks Thank Saint Sir Near Today "
    "Yesterday "
    "Tomorrow Yes No Well Okay Ok Oh Is Was Did Does Has With By Of To For And Good Morning Afternoon Evening San "
    "Professor Mister Both Only Even East West Lake River"
)

EITHER_OR = _words("he/she she/he his/her her/his him/her her/him himself/herself yes/no true/false either/or s/he")

# Books of the Bible and their abbreviations, before a chapter and verse: "Gen 1:1".
BOOKS = _table(
    """
    Genesis = Genesis; Gen = Genesis; Exodus = Exodus; Exod = Exodus; Ex = Exodus; Leviticus = Leviticus
    Lev = Leviticus; Numbers = Numbers; Num = Numbers; Deuteronomy = Deuteronomy; Deut = Deuteronomy; Joshua = Joshua
    Josh = Joshua; Judges = Judges; Judg = Judges; Ruth = Ruth; Samuel = Samuel; Sam = Samuel; Kings = Kings
    Kgs = Kings; Chronicles = Chronicles; Chron = Chronicles; Chr = Chronicles; Ezra = Ezra; Nehemiah = Nehemiah
    Neh = Nehemiah; Esther = Esther; Esth = Esther; Job = Job; Psalm = Psalm; Psalms = Psalms; Ps = Psalm; Psa = Psalm
    Pss = Psalms; Proverbs = Proverbs; Prov = Proverbs; Ecclesiastes = Ecclesiastes; Eccl = Ecclesiastes
    Isaiah = Isaiah; Isa = Isaiah; Jeremiah = Jeremiah; Jer = Jeremiah; Lamentations = Lamentations
    Lam = Lamentations; Ezekiel = Ezekiel; Ezek = Ezekiel; Daniel = Daniel; Hosea = Hosea; Hos = Hosea; Joel = Joel
    Amos = Amos; Obadiah = Obadiah; Jonah = Jonah; Jon = Jonah; Micah = Micah; Mic = Micah; Nahum = Nahum
    Habakkuk = Habakkuk; Hab = Habakkuk; Zephaniah = Zephaniah; Zeph = Zephaniah; Haggai = Haggai
    Zechariah = Zechariah; Zech = Zechariah; Malachi = Malachi; Mal = Malachi; Matthew = Matthew; Matt = Matthew
    Mt = Matthew; Mark = Mark; Mk = Mark; Luke = Luke; Lk = Luke; John = John; Jn = John; Acts = Acts; Romans = Romans
    Rom = Romans; Corinthians = Corinthians; Cor = Corinthians; Galatians = Galatians; Gal = Galatians
    Ephesians = Ephesians; Eph = Ephesians; Philippians = Philippians; Phil = Philippians; Colossians = Colossians
    Col = Colossians; Thessalonians = Thessalonians; Thess = Thessalonians; Timothy = Timothy; Tim = Timothy
    Titus = Titus; Tit = Titus; Philemon = Philemon; Phlm = Philemon; Hebrews = Hebrews; Heb = Hebrews; James = James
    Verse = Verse; verse = verse
    Jas = James; Peter = Peter; Pet = Peter; Jude = Jude; Revelation = Revelation; Rev = Revelation; Quran = Quran
    Qur'an = Qur'an; Koran = Koran; Sura = Sura; Surah = Surah
    """
)

FRACTION_NAMES = {
    2: ("half", "halves"),
    3: ("third", "thirds"),
    4: ("quarter", "quarters"),
    5: ("fifth", "fifths"),
    6: ("sixth", "sixths"),
    7: ("seventh", "sevenths"),
    8: ("eighth", "eighths"),
    9: ("ninth", "ninths"),
    10: ("tenth", "tenths"),
    12: ("twelfth", "twelfths"),
    16: ("sixteenth", "sixteenths"),
    32: ("thirty second", "thirty seconds"),
    64: ("sixty fourth", "sixty fourths"),
}

_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi "
    "psi omega"
).split()
SYMBOLS = {
    "+": " plus ",
    "=": " equals ",
    "×": " times ",
    "÷": " divided by ",
    "<": " less than ",
    ">": " greater than ",
    "≤": " less than or equal to ",
    "≥": " greater than or equal to ",
    "≠": " not equal to ",
    "≈": " is approximately ",
    "±": " plus or minus ",
    "→": " to ",
    "⇒": " implies ",
    "√": " square root of ",
    "∞": " infinity ",
    "π": " pi ",
    "%": " percent ",
    "‰": " per mille ",
    "°": " degrees ",
    "&": " and ",
    "@": " at ",
    "§": " section ",
    "¶": " paragraph ",
    "©": " copyright ",
    "²": " squared ",
    "³": " cubed ",
    "Ω": " ohms ",
    "∑": " sum ",
    "∆": " delta ",
    "∈": " in ",
    "^": " to the power of ",
    "¢": " cents ",
    "$": " dollars ",
    "€": " euros ",
    "£": " pounds ",
    "¥": " yen ",
    "−": " minus ",
    "&&": " and ",
    "!=": " not equal to ",
    "==": " equals ",
    "<>": " ",
    "§§": " sections ",
    "∛": " cube root of ",
    "∀": " for all ",
    "∃": " there exists ",
    "∄": " there is no ",
    "∅": " the empty set ",
    "∉": " not in ",
    "⊂": " is a subset of ",
    "⊆": " is a subset of ",
    "⊃": " is a superset of ",
    "⊇": " is a superset of ",
    "∪": " union ",
    "∩": " intersection ",
    "∧": " and ",
    "∨": " or ",
    "¬": " not ",
    "∫": " the integral of ",
    "∬": " the double integral of ",
    "∮": " the contour integral of ",
    "∂": " partial ",
    "∇": " nabla ",
    "∏": " product ",
    "∝": " is proportional to ",
    "≡": " is equivalent to ",
    "≅": " is congruent to ",
    "≪": " is much less than ",
    "≫": " is much greater than ",
    "∴": " therefore ",
    "∵": " because ",
    "∠": " angle ",
    "⊥": " is perpendicular to ",
    "∥": " is parallel to ",
    "⊕": " direct sum ",
    "⊗": " tensor ",
    "∘": " composed with ",
    "∓": " minus or plus ",
    "⌘": " command ",
    "⇧": " shift ",
    "⌥": " option ",
    "⌃": " control ",
    "⏎": " enter ",
    "↵": " enter ",
    "⌫": " delete ",
    "⎋": " escape ",
    "⇥": " tab ",
}
# The names of Greek letters that stand alone in English text.
GREEK = {
    **dict(zip("αβγδεζηθικλμνξοπρστυφχψω", _GREEK_NAMES, strict=True)),
    **dict(zip("ΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩ", _GREEK_NAMES, strict=True)),
    "ς": "sigma",
    "ϕ": "phi",
    "ϵ": "epsilon",
    "ϑ": "theta",
}
