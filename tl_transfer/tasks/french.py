"""French against English: a language as a harmless direction.

Contrast texts are translations of each other, so that the language is all they differ in. The
effect is measured after headings that could stand in either language, by the log-odds of French
against English function words as the next token. Predicates of one part occur in no other.
"""

import re
from itertools import product

from tl_transfer.errors import InputError
from tl_transfer.tasks.base import Task
from tl_transfer.tasks.common import factors, ordered, prompts, split_prose

# (English, French); `{}` is the subject.
_SUBJECTS = (
    ("the old baker", "le vieux boulanger"), ("the teacher", "la maîtresse d'école"),
    ("our neighbour", "notre voisin"), ("the girl next door", "la fille d'à côté"),
    ("the doctor", "le médecin"), ("my uncle", "mon oncle"),
    ("the captain of the ship", "le capitaine du navire"), ("a young painter", "une jeune peintre"),
    ("the mayor of the town", "le maire de la ville"), ("the gardener", "le jardinier"),
    ("her grandmother", "sa grand-mère"), ("the man in the blue coat", "l'homme au manteau bleu"),
)  # fmt: skip
_CONTRAST = (
    ("{} opened the door before sunrise.", "{} a ouvert la porte avant le lever du soleil."),
    ("every morning {} walks along the river.", "chaque matin {} marche le long de la rivière."),
    ("{} knows the names of all the stars.", "{} connaît le nom de toutes les étoiles."),
    ("yesterday {} lost a set of keys in the garden.",
     "hier {} a perdu un trousseau de clés dans le jardin."),
    ("{} would like to live near the sea.", "{} voudrait habiter près de la mer."),
    ("in the evening {} reads the newspaper aloud.", "le soir {} lit le journal à voix haute."),
    ("nobody understood why {} was laughing.", "personne ne comprenait pourquoi {} riait."),
    ("{} bought bread, cheese and three apples.",
     "{} a acheté du pain, du fromage et trois pommes."),
    ("when it rains {} stays at home with the cat.",
     "quand il pleut {} reste à la maison avec le chat."),
    ("{} has never forgotten that summer.", "{} n'a jamais oublié cet été-là."),
    ("last year {} built a small house of wood.",
     "l'année dernière {} a construit une petite maison en bois."),
    ("{} told us a story that nobody believed.",
     "{} nous a raconté une histoire que personne n'a crue."),
)  # fmt: skip
_FIT = (
    ("{} sold the horse at the market.", "{} a vendu le cheval au marché."),
    ("the letter that {} wrote never arrived.", "la lettre que {} a écrite n'est jamais arrivée."),
    ("{} is afraid of thunder and of dogs.", "{} a peur du tonnerre et des chiens."),
    ("on Sundays {} plays the violin.", "le dimanche {} joue du violon."),
    ("{} asked for a glass of cold water.", "{} a demandé un verre d'eau froide."),
    ("we saw {} on the bridge at midnight.", "nous avons vu {} sur le pont à minuit."),
    ("{} works in a factory that makes shoes.",
     "{} travaille dans une usine qui fabrique des chaussures."),
    ("without a map {} could not find the village.",
     "sans carte {} ne pouvait pas trouver le village."),
    ("{} speaks slowly and thinks quickly.", "{} parle lentement et pense vite."),
    ("the train left before {} reached the station.",
     "le train est parti avant que {} n'arrive à la gare."),
    ("{} keeps old coins in a wooden box.",
     "{} garde de vieilles pièces dans une boîte en bois."),
    ("during the war {} lived in the mountains.",
     "pendant la guerre {} vivait dans les montagnes."),
    ("{} paints the same window again and again.", "{} peint toujours la même fenêtre."),
    ("tomorrow {} will leave for the south.", "demain {} partira pour le sud."),
    ("{} gave the children a ball and two books.",
     "{} a donné aux enfants un ballon et deux livres."),
    ("the snow surprised {} on the way home.", "la neige a surpris {} sur le chemin du retour."),
)  # fmt: skip

# What stands before the next token belongs to no language.
_VALIDATION = (
    ("{} (1987).", "Photo: {}.", "2. {} -", "{}, 12/03/2004:"),
    ("Restaurant Roma", "Sofia Martin", "Radio Monaco", "Villa Aurora"),
)  # fmt: skip
_TEST = (
    ("1. {}:", "{} - Paris, 1998.", "Menu: {}.", "Page 3. {}.", "[{}]", "{}, 2011 -", "Film: {}.",
     "Festival 2004, {}."),
    ("Hotel Bristol", "Anna Lambert", "Louis Simon", "Orange", "Mont Blanc"),
)  # fmt: skip
_GENERATION = (
    ("Album: {}.", "{}, Canada, 2016."),
    ("Julie Robert", "Le Petit Train", "Grand Canal", "Table 7"),
)  # fmt: skip

_FRENCH = (
    "le", "la", "les", "un", "une", "des", "du", "est", "dans", "pour", "avec", "sur", "qui", "et",
    "il", "elle", "ce", "cette", "au", "par",
)  # fmt: skip
_ENGLISH = (
    "the", "a", "an", "of", "is", "in", "for", "with", "on", "which", "and", "he", "she", "this",
    "was", "by", "at", "from", "it", "that",
)  # fmt: skip


def french_share(text: str) -> float:
    """French minus English function words, as a share of all words; -1 to 1."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    counted = sum((word in _FRENCH) - (word in _ENGLISH) for word in words)
    return counted / max(len(words), 1)


def french(*, n_contrast: int = 144, n_fit: int = 600, n_neutral: int = 16, seed: int = 0) -> Task:
    """The French task.

    Args:
        n_contrast: Sentences of each language for the source's direction; the i-th of one is the
            translation of the i-th of the other.
        n_fit: Texts the map is fitted on: a quarter each French and English sentences with other
            predicates, half general prose.
        n_neutral: Passages of English prose for measuring damage, on validation and on test each.
        seed: Of every choice of texts.

    Raises:
        InputError: more texts asked for than there are.
    """
    pairs, fit_pairs = _sentences(_CONTRAST), _sentences(_FIT)
    n_pairs = n_fit // 4
    if n_contrast > len(pairs) or n_pairs > len(fit_pairs):
        raise InputError(
            "n_contrast, n_fit: more texts asked for than there are",
            got=f"n_contrast {n_contrast}, n_fit {n_fit}",
            valid=f"n_contrast up to {len(pairs)}, n_fit up to {4 * len(fit_pairs) + 3}",
            hint="ask for fewer",
        )
    contrast = [pairs[english] for english in ordered(list(pairs), seed)[:n_contrast]]
    fit = [fit_pairs[english] for english in ordered(list(fit_pairs), seed)[:n_pairs]]
    prose = split_prose(n_neutral, n_fit - 2 * n_pairs, seed=seed)
    return Task(
        name="french",
        title="French against English",
        positive=tuple(french for _, french, _ in contrast),
        negative=tuple(english for english, _, _ in contrast),
        fit_texts=(
            *(text for english, french, _ in fit for text in (french, english)),
            *(passage.text for passage in prose.fit),
        ),
        fit_documents=(
            *(frame for _, _, frame in fit for _ in range(2)),
            *(passage.document for passage in prose.fit),
        ),
        neutral_validation=prose.validation,
        neutral_test=prose.test,
        validation_prompts=prompts(_VALIDATION),
        test_prompts=prompts(_TEST),
        test_factors=factors(_TEST),
        generation_prompts=prompts(_GENERATION),
        positive_words=_spelled(_FRENCH),
        negative_words=_spelled(_ENGLISH),
        scorer=french_share,
        scorer_name="French minus English function words, share of all words",
        protocol="L2",
        protocol_note=(
            "of the target, only activations on unlabelled text are used to make the transferred "
            "vector; a quarter of that text is French, so it covers the concept; the native "
            "vector uses the labels in the target and is there for comparison"
        ),
        limits=(
            "French function words are told from English ones alone; some are Spanish words, too, "
            "and no other language is looked for.",
            "Contrast sentences are made from templates, twelve subjects in twelve frames.",
            "Damage is measured on English prose, which a push towards French must change.",
        ),
    )


def _sentences(frames: tuple[tuple[str, str], ...]) -> dict[str, tuple[str, str, str]]:
    """English sentence -> itself, its translation, and its frame (the document of both)."""
    made = {}
    for number, ((english, french), (subject, sujet)) in enumerate(product(frames, _SUBJECTS)):
        sentence = _capital(english.format(subject))
        translation = _capital(french.format(sujet))
        made[sentence] = (sentence, translation, f"frame/{number // len(_SUBJECTS)}")
    return made


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _spelled(words: tuple[str, ...]) -> tuple[str, ...]:
    """With the leading space, in small letters and with a capital."""
    return tuple(f" {spelled}" for word in words for spelled in (word, _capital(word)))
