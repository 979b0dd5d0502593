// Texts to read aloud, by language. Each has many different sounds and takes 10 to 12 seconds.

const SCRIPTS = {
  en: [
    "We walked along the river after dinner, and the lamps were just being lit. My brother told me about the job he had found. Isn't it strange how quickly the summer goes?",
    "The baker on our street opens at six. By then three people are usually waiting, rubbing their hands and yawning. Would you like the dark loaf or the light one?",
  ],
  de: [
    "Nach dem Essen gingen wir am Fluss entlang, und gerade wurden die Lampen angezündet. Ist es nicht seltsam, wie schnell der Sommer vergeht? Ich habe noch Sand in den Schuhen.",
    "Der Bäcker in unserer Straße öffnet um sechs. Meist warten dann schon drei Leute, reiben sich die Hände und gähnen. Möchten Sie das dunkle Brot oder das helle?",
  ],
  fr: [
    "Après le dîner, nous avons marché le long de la rivière, et l'on allumait tout juste les lampes. N'est-ce pas étrange, comme l'été passe vite ? J'ai encore du sable dans mes chaussures.",
    "La boulangerie de notre rue ouvre à six heures. Trois personnes attendent déjà, se frottent les mains et bâillent. Voulez-vous le pain noir ou le pain blanc ?",
  ],
};

/** The nth text in a language, or null when the language has none. */
export function script(language, n) {
  const found = SCRIPTS[language.slice(0, 2).toLowerCase()];
  return found ? found[n % found.length] : null;
}
