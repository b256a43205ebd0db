"""The embedded corpus: parallel English and Spanish children's stories from a grammar of our own.

A story is a plot: a list of slots, each with several pairs of templates (English, Spanish) that say the same. The
templates are filled from tables of characters, animals, places, things and so on; nouns carry their Spanish gender, so
that articles, adjectives and pronouns agree.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

Pair = tuple[str, str]
Slot = tuple[Pair, ...]

# ---- words: English, Spanish, gender -----------------------------------------------------------

CHILDREN = (
    "Tom Tomás m|Lucy Lucía f|John Juan m|Mary María f|Peter Pedro m|Anne Ana f|Paul Pablo m|Helen Elena f|"
    "James Jaime m|Sophie Sofía f|Michael Miguel m|Julie Julia f|Andrew Andrés m|Rose Rosa f|Luke Lucas m|"
    "Claire Clara f|Charles Carlos m|Emily Emilia f|Mark Marcos m|Lily Liliana f|Joseph José m|Elizabeth Isabel f|"
    "Philip Felipe m|Alice Alicia f|George Jorge m|Martha Marta f|Henry Enrique m|Theresa Teresa f|"
    "William Guillermo m|Beatrice Beatriz f"
)
GROWN_UPS = (
    "mother madre f|father padre m|grandmother abuela f|grandfather abuelo m|aunt tía f|uncle tío m|"
    "sister hermana f|brother hermano m|godmother madrina f|godfather padrino m"
)
ANIMALS = (
    "rabbit conejo m|fox zorro m|turtle tortuga f|squirrel ardilla f|mouse ratón m|owl búho m|duck pato m|"
    "frog rana f|hedgehog erizo m|sheep oveja f|cat gato m|dog perro m|goat cabra f|butterfly mariposa f|hen gallina f|"
    "donkey burro m|bird pájaro m|deer ciervo m|swan cisne m|pigeon paloma f|pony potro m|lamb cordero m"
)
PLACES = (  # with the preposition of "at": in, at, on, by
    "park parque m in|forest bosque m in|river río m by|lake lago m by|garden jardín m in|school escuela f at|"
    "market mercado m at|hill colina f on|beach playa f on|farm granja f on|bridge puente m by|square plaza f in|"
    "library biblioteca f at|barn granero m in|meadow prado m in|mill molino m by|cave cueva f in|bakery panadería f at|"
    "harbor puerto m at|castle castillo m in|field campo m in|station estación f at|workshop taller m in|"
    "pond estanque m by|well pozo m by|street calle f in|orchard huerto m in|fountain fuente f by"
)
THINGS = (
    "ball pelota f|kite cometa f|doll muñeca f|book libro m|hat sombrero m|drum tambor m|box caja f|key llave f|"
    "boat barco m|basket cesta f|lamp lámpara f|whistle silbato m|scarf bufanda f|bell campana f|coin moneda f|"
    "button botón m|map mapa m|ring anillo m|umbrella paraguas m|backpack mochila f|bucket cubo m|shovel pala f|"
    "ribbon cinta f|mirror espejo m|spoon cuchara f|blanket manta f|clock reloj m|train tren m|glove guante m|"
    "shell concha f|feather pluma f|flute flauta f|letter carta f|stone piedra f|pencil lápiz m|coat abrigo m"
)
FOODS = (  # with plurals
    "apple manzana f apples manzanas|cake pastel m cakes pasteles|cookie galleta f cookies galletas|"
    "pear pera f pears peras|orange naranja f oranges naranjas|pie tarta f pies tartas|"
    "sandwich bocadillo m sandwiches bocadillos|banana plátano m bananas plátanos|"
    "carrot zanahoria f carrots zanahorias|peach melocotón m peaches melocotones|"
    "strawberry fresa f strawberries fresas|egg huevo m eggs huevos|cherry cereza f cherries cerezas|"
    "pancake tortita f pancakes tortitas|bun bollo m buns bollos|plum ciruela f plums ciruelas|"
    "muffin magdalena f muffins magdalenas|tomato tomate m tomatoes tomates|nut nuez f nuts nueces"
)
PLANTS = (
    "sunflower girasol m|rose tree rosal m|tomato plant tomatera f|bean plant mata de judías f|lemon tree limonero m|"
    "apple tree manzano m|vine parra f|pumpkin calabaza f|tulip tulipán m|daisy margarita f|cherry tree cerezo m|"
    "strawberry plant fresera f"
)
ADJECTIVES = (  # masculine, feminine
    "red rojo roja|blue azul azul|green verde verde|yellow amarillo amarilla|white blanco blanca|black negro negra|"
    "big grande grande|small pequeño pequeña|old viejo vieja|new nuevo nueva|shiny brillante brillante|"
    "soft suave suave|pretty bonito bonita|strange extraño extraña|heavy pesado pesada|light ligero ligera|"
    "purple morado morada|golden dorado dorada|round redondo redonda|tiny diminuto diminuta|wet mojado mojada|"
    "brown marrón marrón|pink rosado rosada|silver plateado plateada"
)
CHARACTERS = (
    "kind amable amable|brave valiente valiente|curious curioso curiosa|cheerful alegre alegre|clever listo lista|"
    "quiet callado callada|shy tímido tímida|funny gracioso graciosa|gentle dulce dulce|lively inquieto inquieta|"
    "honest honrado honrada|patient paciente paciente|polite educado educada|stubborn terco terca|little pequeño pequeña"
)
BAD_MOODS = (
    "sad triste triste|worried preocupado preocupada|scared asustado asustada|tired cansado cansada|"
    "upset disgustado disgustada|nervous nervioso nerviosa|gloomy apenado apenada|confused confundido confundida"
)
GOOD_MOODS = (
    "happy feliz feliz|glad contento contenta|proud orgulloso orgullosa|calm tranquilo tranquila|"
    "excited emocionado emocionada|grateful agradecido agradecida|surprised sorprendido sorprendida"
)
NUMBERS = (("two", "dos"), ("three", "tres"), ("four", "cuatro"), ("five", "cinco"), ("six", "seis"), ("ten", "diez"))
SKILLS = (
    ("swim", "nadar"),
    ("ride a bicycle", "montar en bicicleta"),
    ("skate", "patinar"),
    ("cook", "cocinar"),
    ("draw horses", "dibujar caballos"),
    ("play the flute", "tocar la flauta"),
    ("knit", "tejer"),
    ("climb trees", "trepar a los árboles"),
    ("fish", "pescar"),
    ("row", "remar"),
    ("bake bread", "hornear pan"),
    ("dance", "bailar"),
    ("whistle", "silbar"),
    ("write letters", "escribir cartas"),
)
TIMES = (
    ("one morning", "una mañana"),
    ("one afternoon", "una tarde"),
    ("one evening", "al anochecer"),
    ("on Monday", "el lunes"),
    ("on Friday", "el viernes"),
    ("on Sunday", "el domingo"),
    ("one summer day", "un día de verano"),
    ("one winter day", "un día de invierno"),
    ("in spring", "en primavera"),
    ("after lunch", "después de comer"),
    ("at noon", "al mediodía"),
    ("early one day", "un día, muy temprano"),
)
WEATHER = (
    ("the sun was shining", "brillaba el sol"),
    ("it was raining softly", "llovía despacio"),
    ("the wind was blowing", "soplaba el viento"),
    ("it was very cold", "hacía mucho frío"),
    ("it was very hot", "hacía mucho calor"),
    ("the sky was gray", "el cielo estaba gris"),
    ("there was fog everywhere", "había niebla por todas partes"),
    ("the birds were singing", "cantaban los pájaros"),
    ("the snow had just melted", "la nieve acababa de derretirse"),
)
CONTESTS = (
    ("the big race", "la gran carrera"),
    ("the singing contest", "el concurso de canto"),
    ("the cooking contest", "el concurso de cocina"),
    ("the kite contest", "el concurso de cometas"),
    ("the drawing contest", "el concurso de dibujo"),
    ("the boat race", "la carrera de barcos"),
)

# ---- plots: slots of (English, Spanish) --------------------------------------------------------
# a: the child, b: a friend (both: the two of them), g: a grown-up, n: an animal, p and q: places, x and y: things, f: a food, v: a plant.

OPENING: Slot = (
    ("Once upon a time there was {a.natured} {a.kid} named {a.name}.", "Había una vez {a.one} {a.kid} {a.nature} que se llamaba {a.name}."),
    ("{a.name} was {a.natured} {a.kid} who lived near {p.the}.", "{a.name} era {a.one} {a.kid} {a.nature} que vivía cerca {p.of_the}."),
    ("In a house by {p.the} lived a {a.kid} named {a.name}.", "En una casa junto {p.to_the} vivía {a.one} {a.kid} que se llamaba {a.name}."),
    ("{a.name} looked out of the window: {weather}.", "{a.name} miró por la ventana: {weather}."),
    ("{a.name} lived with {g.name} and {n.a}.", "{a.name} vivía con {g.name} y con {n.a}."),
    ("Everybody in the village knew {a.name}, who was very {a.nature2}.", "Todos en el pueblo conocían a {a.name}, que era muy {a.nature2}."),
)  # fmt: skip
ENDING: Slot = (
    ("From that day on, {a.name} and {b.name} were always together.", "Desde aquel día, {a.name} y {b.name} estuvieron siempre {both.together}."),
    ("That night {a.name} slept very well.", "Aquella noche {a.name} durmió muy bien."),
    ("{a.name} never forgot that day.", "{a.name} nunca olvidó aquel día."),
    ("And everybody went home with a smile.", "Y todos volvieron a casa con una sonrisa."),
    ("\"What a wonderful day,\" said {a.name}.", "«¡Qué día tan maravilloso!», dijo {a.name}."),
    ("When the stars came out, {a.name} told {g.name} everything.", "Cuando salieron las estrellas, {a.name} se lo contó todo a {g.name}."),
    ("{g.Name} gave {a.him} a big hug.", "{g.Name} le dio un gran abrazo."),
    ("{a.He} had never been so {a.glad}.", "Nunca había estado tan {a.glad}."),
)  # fmt: skip
PLOTS: dict[str, tuple[Slot, ...]] = {
    "lost": (
        (
            ("{a.He} had {x.a} and took it everywhere.", "Tenía {x.a} y {x.it} llevaba a todas partes."),
            ("{a.His} favorite toy was {x.a}.", "Su juguete favorito era {x.a}."),
            ("{g.Name} had given {a.him} {x.a}.", "{g.Name} le había regalado {x.a}."),
        ),
        (
            ("But {time}, {a.he} could not find {x.the_noun}.", "Pero {time} no pudo encontrar {x.the_noun}."),
            ("{time}, while {a.he} was playing {p.at}, {x.the_noun} disappeared.", "{time}, mientras jugaba {p.at}, {x.the_noun} desapareció."),
            ("When {a.he} came back from {p.the}, {a.his} bag was empty.", "Cuando volvió {p.of_the}, su bolsa estaba vacía."),
        ),
        (
            ("{a.name} was very {a.sad}.", "{a.name} se sentía muy {a.sad}."),
            ("\"Where is my {x.noun}?\" cried {a.name}.", "«¿Dónde está mi {x.noun}?», gritó {a.name}."),
            ("{a.He} began to cry.", "Se puso a llorar."),
        ),
        (
            ("{a.He} looked under the bed and behind the door.", "Miró debajo de la cama y detrás de la puerta."),
            ("{b.name} came to help, and they searched {q.at}.", "{b.name} vino a ayudar, y buscaron {q.at}."),
            ("{a.He} asked {g.name}, but nobody knew anything.", "Preguntó a {g.name}, pero nadie sabía nada."),
            ("They followed small footprints to {q.the}.", "Siguieron unas huellas pequeñas hasta {q.the}."),
        ),
        (
            ("At last they saw {n.a} sleeping beside {x.the_noun}.", "Por fin vieron {n.a_} que dormía al lado {x.of_the}."),
            ("{x.The_noun} was lying {q.at}, next to {n.a}.", "{x.The_noun} estaba {q.at}, al lado de {n.a}."),
            ("\"Look!\" shouted {b.name}. \"{n.The} has it!\"", "«¡Mira!», gritó {b.name}. «¡{n.The} {x.it} tiene!»"),
        ),
        (
            ("{a.name} thanked {b.name} and put {x.the_noun} in a safe place.", "{a.name} dio las gracias a {b.name} y guardó {x.the_noun} en un lugar seguro."),
            ("{a.He} laughed and took {x.the_noun} home.", "Se rio y se llevó {x.the_noun} a casa."),
            ("\"I will take better care of it,\" promised {a.name}.", "«{x.It} cuidaré mejor», prometió {a.name}."),
        ),
    ),
    "friend": (
        (
            ("{time}, a new family came to live near {p.the}.", "{time} una familia nueva vino a vivir cerca {p.of_the}."),
            ("There was a new {b.kid} at school, and {b.his} name was {b.name}.", "Había {b.one} {b.kid} {b.new} en la escuela, y se llamaba {b.name}."),
        ),
        (
            ("{b.name} did not know anybody and was {b.sad}.", "{b.name} no conocía a nadie y se sentía {b.sad}."),
            ("{b.name} sat alone {p.at} with {x.a}.", "{b.name} se sentaba a solas {p.at} con {x.a}."),
            ("Nobody spoke to {b.name}.", "Nadie hablaba con {b.name}."),
        ),
        (
            ("{a.name} walked over and smiled.", "{a.name} se acercó y sonrió."),
            ("\"Hello, do you want to play with me?\" asked {a.name}.", "«Hola, ¿quieres jugar conmigo?», preguntó {a.name}."),
            ("{a.name} was shy too, but {a.he} waved.", "A {a.name} también le daba vergüenza, pero saludó con la mano."),
        ),
        (
            ("{b.name} showed {a.him} {x.the}.", "{b.name} le enseñó {x.the}."),
            ("\"Yes, please!\" answered {b.name}.", "«¡Sí, por favor!», contestó {b.name}."),
            ("{b.name} looked up, very {b.glad}.", "{b.name} levantó la vista, muy {b.glad}."),
        ),
        (
            ("They ran to {q.the} and chased {n.a}.", "Corrieron hasta {q.the} y persiguieron {n.a_}."),
            ("They ate {number} {f.many} and laughed a lot.", "Comieron {number} {f.many} y se rieron mucho."),
            ("Together they built a tower with {number} boxes.", "Construyeron juntos una torre con {number} cajas."),
            ("They played {q.at} until it was dark.", "Jugaron {q.at} hasta que se hizo de noche."),
        ),
        (
            ("\"You are my best friend,\" said {b.name}.", "«Eres mi mejor {a.friend}», dijo {b.name}."),
            ("Now {b.name} was not alone anymore.", "Ahora {b.name} ya no estaba {b.alone}."),
            ("{a.name} learned that a smile can open every door.", "{a.name} aprendió que una sonrisa abre todas las puertas."),
        ),
    ),
    "storm": (
        (
            ("{time}, {a.name} and {b.name} went to {p.the}.", "{time}, {a.name} y {b.name} fueron {p.to_the}."),
            ("{a.name} was playing {p.at} with {x.the}.", "{a.name} jugaba {p.at} con {x.the}."),
        ),
        (
            ("Suddenly the sky turned black.", "De repente el cielo se puso negro."),
            ("Big clouds came over {q.the}.", "Unas nubes enormes llegaron desde {q.the}."),
            ("A loud thunder shook the windows.", "Un trueno fuerte sacudió las ventanas."),
        ),
        (
            ("The rain fell so hard that {a.he} could not see {p.the}.", "La lluvia caía con tanta fuerza que no podía ver {p.the}."),
            ("The wind carried {x.the_noun} away.", "El viento se llevó {x.the_noun}."),
            ("{a.name} was {a.sad} and covered {a.his} ears.", "{a.name} estaba {a.sad} y se tapó los oídos."),
        ),
        (
            ("\"Come with me!\" shouted {g.name}.", "«¡Ven conmigo!», gritó {g.name}."),
            ("{b.name} took {a.him} by the hand, and they ran.", "{b.name} {a.it} tomó de la mano y corrieron."),
            ("They hid under a big tree with {n.a}.", "Se escondieron bajo un gran árbol con {n.a}."),
            ("They found a small hut and closed the door.", "Encontraron una pequeña cabaña y cerraron la puerta."),
        ),
        (
            ("{g.Name} lit a candle and told old stories.", "{g.Name} encendió una vela y contó viejas historias."),
            ("They shared {f.a} and sang until the rain stopped.", "Compartieron {f.a} y cantaron hasta que dejó de llover."),
            ("{a.name} counted the seconds after each flash of lightning.", "{a.name} contaba los segundos después de cada relámpago."),
        ),
        (
            ("Then the sun came back, and a rainbow stood over {q.the}.", "Luego volvió el sol, y un arco iris apareció sobre {q.the}."),
            ("In the morning everything smelled of wet earth.", "Por la mañana todo olía a tierra mojada."),
            ("After the storm they found {x.the_noun} {q.at}.", "Después de la tormenta encontraron {x.the_noun} {q.at}."),
        ),
    ),
    "sharing": (
        (
            ("{time}, {g.name} left {number} {f.many} on the table.", "{time}, {g.name} dejó {number} {f.many} sobre la mesa."),
            ("{a.name} bought {number} {f.many} at the market.", "{a.name} compró {number} {f.many} en el mercado."),
            ("{a.name} was hungry and had only one {f.noun}.", "{a.name} tenía hambre y solo le quedaba {f.a}."),
        ),
        (
            ("{a.He} took everything to {p.the} in a basket.", "Se lo llevó todo {p.to_the} en una cesta."),
            ("{a.He} sat down {p.at} to eat.", "Se sentó a comer {p.at}."),
            ("On the way to {p.the}, {a.he} met {b.name}.", "De camino {p.to_the}, se encontró con {b.name}."),
        ),
        (
            ("Then {n.a} came and looked at {a.him}.", "Entonces llegó {n.a} y {a.it} miró."),
            ("{b.name} had nothing to eat.", "{b.name} no tenía nada que comer."),
            ("\"I am so hungry,\" said {b.name}.", "«Tengo tanta hambre», dijo {b.name}."),
        ),
        (
            ("At first {a.name} wanted to keep everything.", "Al principio {a.name} quería quedarse con todo."),
            ("{a.name} thought about it for a moment.", "{a.name} lo pensó un momento."),
            ("{a.name} remembered what {g.name} always said.", "{a.name} recordó lo que siempre decía {g.name}."),
        ),
        (
            ("\"Take half,\" said {a.name}.", "«Toma la mitad», dijo {a.name}."),
            ("{a.He} broke {f.the} in two pieces.", "Partió {f.the} en dos trozos."),
            ("{a.He} gave the biggest piece to {b.name}.", "Le dio el trozo más grande a {b.name}."),
        ),
        (
            ("They ate slowly and watched {n.the}.", "Comieron despacio y miraron {n.to_the}."),
            ("It tasted better than ever before.", "Sabía mejor que nunca."),
            ("In return, {b.name} gave {a.him} {y.a}.", "A cambio, {b.name} le dio {y.a}."),
        ),
        (
            ("{g.Name} was very {g.proud}.", "{g.Name} estaba muy {g.proud}."),
            ("Those who share are never alone.", "Quien comparte nunca se queda solo."),
        ),
    ),
    "learning": (
        (
            ("{a.name} wanted to learn to {skill}.", "{a.name} quería aprender a {skill}."),
            ("All the other children could {skill}, but {a.name} could not.", "Todos los demás niños sabían {skill}, pero {a.name} no."),
        ),
        (
            ("{time}, {a.he} tried it {p.at}.", "{time} lo intentó {p.at}."),
            ("{g.Name} said, \"I will teach you.\"", "{g.Name} dijo: «Yo te enseñaré»."),
        ),
        (
            ("The first time everything went wrong.", "La primera vez todo salió mal."),
            ("{a.He} fell down and hurt {a.his} knee.", "Se cayó y se hizo daño en la rodilla."),
            ("{b.name} laughed, and {a.name} was {a.sad}.", "{b.name} se rio, y {a.name} se sintió {a.sad}."),
        ),
        (
            ("\"I cannot do it,\" said {a.name}.", "«No puedo hacerlo», dijo {a.name}."),
            ("{a.name} wanted to give up.", "{a.name} quería rendirse."),
            ("\"Try again,\" said {g.name} with patience.", "«Inténtalo otra vez», dijo {g.name} con paciencia."),
        ),
        (
            ("So {a.he} practiced every day for {number} weeks.", "Así que practicó todos los días durante {number} semanas."),
            ("Every afternoon {a.he} went to {q.the} to practice.", "Todas las tardes iba {q.to_the} a practicar."),
            ("{b.name} helped {a.him} and never laughed again.", "{b.name} le ayudó y no volvió a reírse."),
        ),
        (
            ("Finally {a.name} could {skill} better than {b.name}.", "Por fin {a.name} sabía {skill} mejor que {b.name}."),
            ("Little by little it became easy.", "Poco a poco se volvió fácil."),
            ("\"Look, I can {skill}!\" shouted {a.name}.", "«¡Mirad, ya sé {skill}!», gritó {a.name}."),
        ),
        (
            ("Even {n.the} seemed to be watching.", "Hasta {n.the} parecía mirar."),
            ("{a.name} felt very {a.glad}.", "{a.name} se sintió muy {a.glad}."),
        ),
    ),
    "trip": (
        (
            ("{time}, {a.name} and {g.name} went on a trip.", "{time}, {a.name} y {g.name} salieron de viaje."),
            ("{a.name} had never seen {q.the} before.", "{a.name} nunca había visto {q.the}."),
        ),
        (
            ("They packed {x.a} and {number} {f.many}.", "Metieron en la maleta {x.a} y {number} {f.many}."),
            ("They took {x.a} and nothing else.", "Se llevaron {x.a} y nada más."),
        ),
        (
            ("The road was long, and {weather}.", "El camino era largo y {weather}."),
            ("From the window they saw {number} cows and {n.a}.", "Desde la ventanilla vieron {number} vacas y {n.a}."),
            ("They walked for {number} hours until they reached {p.the}.", "Caminaron {number} horas hasta llegar {p.to_the}."),
        ),
        (
            ("\"Are we there yet?\" asked {a.name}.", "«¿Falta mucho?», preguntó {a.name}."),
            ("Suddenly they did not know where they were.", "De pronto no sabían dónde estaban."),
            ("{a.name} was {a.sad} because it was getting late.", "{a.name} estaba {a.sad} porque se hacía tarde."),
        ),
        (
            ("A {b.kid} named {b.name} showed them the way to {q.the}.", "{b.One} {b.kid} que se llamaba {b.name} les enseñó el camino {q.to_the}."),
            ("They followed {n.the} and found the right path.", "Siguieron {n.to_the} y encontraron el buen camino."),
        ),
        (
            ("At last they arrived, and it was beautiful.", "Por fin llegaron, y era precioso."),
            ("{a.name} jumped with joy when {a.he} saw {q.the}.", "{a.name} saltó de alegría cuando vio {q.the}."),
        ),
        (
            ("They spent the whole afternoon {q.at}.", "Pasaron toda la tarde {q.at}."),
            ("{a.He} picked up {y.a} to remember it.", "Recogió {y.a} de recuerdo."),
            ("\"The world is so big,\" said {a.name}.", "«El mundo es tan grande», dijo {a.name}."),
        ),
    ),
    "hurt_animal": (
        (
            ("{time}, {a.name} heard a strange noise {p.at}.", "{time}, {a.name} oyó un ruido raro {p.at}."),
            ("{a.name} and {b.name} were walking to {p.the}.", "{a.name} y {b.name} caminaban hacia {p.the}."),
        ),
        (
            ("There {a.he} found {n.a} that could not walk.", "Allí encontró {n.a_} que no podía andar."),
            ("In the grass lay {n.a} with a hurt leg.", "En la hierba había {n.a} con una pata herida."),
        ),
        (
            ("\"Poor thing!\" said {a.name}.", "«¡{n.Poor}!», dijo {a.name}."),
            ("{n.The} was trembling with fear.", "{n.The} temblaba de miedo."),
            ("{b.name} did not know what to do.", "{b.name} no sabía qué hacer."),
        ),
        (
            ("{a.name} wrapped it in a warm blanket.", "{a.name} {n.it} envolvió en una manta caliente."),
            ("They carried it very slowly to {q.the}.", "{n.It} llevaron muy despacio {q.to_the}."),
            ("{a.He} ran to fetch {g.name}.", "Corrió a buscar a {g.name}."),
        ),
        (
            ("{g.Name} cleaned the wound with warm water.", "{g.Name} limpió la herida con agua tibia."),
            ("Every day {a.name} gave it water and {f.many}.", "Todos los días {a.name} le daba agua y {f.many}."),
            ("For {number} nights {a.he} slept beside {n.the}.", "Durante {number} noches durmió al lado {n.of_the}."),
        ),
        (
            ("Soon {n.the} was well again.", "Pronto {n.the} se curó."),
            ("After {number} weeks {n.the} could run and jump.", "Después de {number} semanas {n.the} podía correr y saltar."),
        ),
        (
            ("They let it go {p.at}, and it looked back once.", "{n.It} soltaron {p.at}, y miró atrás una vez."),
            ("It stayed with {a.name} and followed {a.him} everywhere.", "Se quedó con {a.name} y {a.it} seguía a todas partes."),
        ),
    ),
    "birthday": (
        (
            ("It was {b.poss} birthday, and {a.name} had no gift.", "Era el cumpleaños de {b.name}, y {a.name} no tenía ningún regalo."),
            ("{time}, {a.name} turned {number} years old.", "{time}, {a.name} cumplió {number} años."),
        ),
        (
            ("{a.He} had only {number} coins.", "Solo tenía {number} monedas."),
            ("Nobody said anything at breakfast, and {a.name} was {a.sad}.", "Nadie dijo nada en el desayuno, y {a.name} se sentía {a.sad}."),
        ),
        (
            ("So {a.he} went to {p.the} to think.", "Así que se fue {p.to_the} a pensar."),
            ("On the way to {p.the} {a.he} saw {x.a}.", "De camino {p.to_the} vio {x.a}."),
            ("\"I have an idea,\" whispered {g.name}.", "«Tengo una idea», susurró {g.name}."),
        ),
        (
            ("They filled a plate with {number} {f.many}.", "Llenaron un plato con {number} {f.many}."),
            ("{a.He} painted {x.the_noun} in many colors.", "Pintó {x.the_noun} de muchos colores."),
            ("All the friends were hiding behind the curtain.", "Todos los amigos estaban escondidos detrás de la cortina."),
        ),
        (
            ("\"Surprise!\" they all shouted.", "«¡Sorpresa!», gritaron todos."),
            ("Then the door opened, and everybody began to sing.", "Entonces se abrió la puerta y todos empezaron a cantar."),
        ),
        (
            ("{b.name} opened the box and found {y.a}.", "{b.name} abrió el paquete y encontró {y.a}."),
            ("There were games, music and {f.many}.", "Hubo juegos, música y {f.many}."),
            ("Even {n.the} wore a paper hat.", "Hasta {n.the} llevaba un gorro de papel."),
        ),
        (
            ("\"It is the best gift of my life,\" said {b.name}.", "«Es el mejor regalo de mi vida», dijo {b.name}."),
            ("The best gift was being together.", "El mejor regalo fue estar juntos."),
        ),
    ),
    "dark": (
        (
            ("{a.name} was afraid of the dark.", "A {a.name} le daba miedo la oscuridad."),
            ("Every night {a.name} heard noises under the bed.", "Todas las noches {a.name} oía ruidos debajo de la cama."),
        ),
        (
            ("One night the lights went out in the whole house.", "Una noche se apagaron las luces de toda la casa."),
            ("That night there was no moon, and {weather}.", "Aquella noche no había luna y {weather}."),
        ),
        (
            ("{a.He} saw a big shadow on the wall.", "Vio una sombra enorme en la pared."),
            ("Something moved near the window.", "Algo se movió cerca de la ventana."),
            ("\"Who is there?\" asked {a.name}.", "«¿Quién anda ahí?», preguntó {a.name}."),
        ),
        (
            ("{g.Name} came with {x.a} and sat down beside {a.him}.", "{g.Name} vino con {x.a} y se sentó a su lado."),
            ("{a.He} took a deep breath and got up.", "Respiró hondo y se levantó."),
            ("{b.name} held {a.his} hand.", "{b.name} le dio la mano."),
        ),
        (
            ("It was only {n.a} looking for {f.a}.", "Solo era {n.a} que buscaba {f.a}."),
            ("The shadow was only {y.a} on the chair.", "La sombra era solo {y.a} sobre la silla."),
            ("It was the wind playing with the curtain.", "Era el viento que jugaba con la cortina."),
        ),
        (
            ("They laughed so loud that they woke everybody up.", "Se rieron tanto que despertaron a todos."),
            ("\"The dark is only the day with its eyes closed,\" said {g.name}.", "«La oscuridad es solo el día con los ojos cerrados», dijo {g.name}."),
        ),
        (
            ("Now {a.name} is not afraid anymore.", "Ahora {a.name} ya no tiene miedo."),
            ("Since then {a.he} sleeps without a lamp.", "Desde entonces duerme sin lámpara."),
        ),
    ),
    "garden": (
        (
            ("{time}, {g.name} gave {a.name} a tiny seed.", "{time}, {g.name} le dio a {a.name} una semilla diminuta."),
            ("{a.name} found a seed {p.at}.", "{a.name} encontró una semilla {p.at}."),
        ),
        (
            ("{a.He} dug a small hole and planted it.", "Cavó un pequeño hoyo y la plantó."),
            ("{b.name} said that nothing would grow there.", "{b.name} dijo que allí no crecería nada."),
        ),
        (
            ("Every morning {a.he} carried water from {q.the}.", "Todas las mañanas traía agua desde {q.the}."),
            ("{a.He} waited for {number} days, but nothing happened.", "Esperó {number} días, pero no pasó nada."),
            ("{a.name} was {a.sad} because the earth was still bare.", "{a.name} estaba {a.sad} porque la tierra seguía vacía."),
        ),
        (
            ("\"Good things need time,\" said {g.name}.", "«Las cosas buenas necesitan tiempo», dijo {g.name}."),
            ("{n.A} wanted to eat the first leaf.", "{n.A} quería comerse la primera hoja."),
            ("Then the sun came out, and {a.he} saw a green leaf.", "Entonces salió el sol y vio una hoja verde."),
        ),
        (
            ("The plant grew taller than {a.name}.", "La planta creció más alta que {a.name}."),
            ("It was {v.a}!", "¡Era {v.a}!"),
            ("In summer {v.the} was the most beautiful thing in the street.", "En verano {v.the} era lo más bonito de la calle."),
        ),
        (
            ("{a.name} and {b.name} sat in its shade and ate {f.many}.", "{a.name} y {b.name} se sentaron a su sombra y comieron {f.many}."),
            ("{a.He} gave new seeds to {b.name}.", "Le regaló semillas nuevas a {b.name}."),
            ("People came from {q.the} to see {v.the}.", "Venía gente desde {q.the} para ver {v.the}."),
        ),
    ),
    "quarrel": (
        (
            ("{a.name} and {b.name} were good friends.", "{a.name} y {b.name} eran {both.friends}."),
            ("{a.name} and {b.name} played {p.at} every day.", "{a.name} y {b.name} jugaban {p.at} todos los días."),
        ),
        (
            ("{time}, both wanted the same {x.noun}.", "{time}, {both.the_two} querían {x.the_same}."),
            ("{time}, {b.name} broke {a.poss} {x.noun}.", "{time}, {b.name} rompió {x.the_noun} de {a.name}."),
        ),
        (
            ("\"It is mine!\" shouted {a.name}.", "«¡Es {x.mine}!», gritó {a.name}."),
            ("\"I do not want to see you again,\" said {a.name}.", "«No quiero verte más», dijo {a.name}."),
            ("{b.name} ran away to {q.the}.", "{b.name} se fue corriendo {q.to_the}."),
        ),
        (
            ("For {number} days they did not speak.", "Durante {number} días no se hablaron."),
            ("{a.name} played alone and felt {a.sad}.", "{a.name} jugaba a solas y se sentía {a.sad}."),
            ("Without {b.name} no game was fun.", "Sin {b.name} ningún juego era divertido."),
        ),
        (
            ("{g.Name} asked, \"What is worth more, {x.a_noun} or a friend?\"", "{g.Name} preguntó: «¿Qué vale más, {x.a_noun} o una amistad?»"),
            ("{a.name} wrote a note and left it {q.at}.", "{a.name} escribió una nota y la dejó {q.at}."),
            ("{a.name} took {f.a} and knocked on {b.poss} door.", "{a.name} tomó {f.a} y llamó a la puerta de {b.name}."),
        ),
        (
            ("\"I am sorry,\" they said at the same time.", "«Lo siento», dijeron {both.the_two} a la vez."),
            ("\"Forgive me,\" said {b.name} with tears.", "«Perdóname», dijo {b.name} con lágrimas."),
        ),
        (
            ("Then they hugged and went to {p.the}.", "Luego se abrazaron y se fueron {p.to_the}."),
            ("Since that day they take turns with {x.the_noun}.", "Desde aquel día se turnan con {x.the_noun}."),
            ("Together they repaired {x.the_noun}.", "Repararon {x.the_noun} entre {both.the_two}."),
        ),
    ),
    "contest": (
        (
            ("{time}, {contest} took place {p.at}.", "{time} se celebró {contest} {p.at}."),
            ("{a.name} dreamed of winning {contest}.", "{a.name} soñaba con ganar {contest}."),
        ),
        (
            ("The prize was {x.a}.", "El premio era {x.a}."),
            ("Many children took part, and {b.name} was the best of all.", "Participaban muchos niños, y {b.name} era {b.the} mejor."),
        ),
        (
            ("{a.name} prepared {q.at} with {g.name}.", "{a.name} se preparó {q.at} con {g.name}."),
            ("{a.name} was so {a.sad} that {a.he} could not eat.", "{a.name} estaba tan {a.sad} que no podía comer."),
        ),
        (
            ("When it began, {weather}.", "Cuando empezó, {weather}."),
            ("\"Good luck!\" said {b.name}.", "«¡Buena suerte!», dijo {b.name}."),
            ("{n.A} ran into the middle, and everybody laughed.", "{n.A} se metió en medio y todos se rieron."),
        ),
        (
            ("Almost at the end, {b.name} fell.", "Casi al final, {b.name} se cayó."),
            ("{a.name} gave everything {a.he} had.", "{a.name} dio todo lo que tenía."),
        ),
        (
            ("{a.name} stopped and helped {b.him} get up.", "{a.name} se detuvo y {b.it} ayudó a levantarse."),
            ("{a.name} came second and was {a.glad} all the same.", "{a.name} quedó en segundo lugar y aun así estaba {a.glad}."),
            ("{a.name} won, and the whole village clapped.", "{a.name} ganó, y todo el pueblo aplaudió."),
        ),
        (
            ("They shared the prize and {number} {f.many}.", "Compartieron el premio y {number} {f.many}."),
            ("\"Winning is nice, but friends are better,\" said {g.name}.", "«Ganar está bien, pero los amigos son mejores», dijo {g.name}."),
        ),
    ),
}  # fmt: skip


# ---- filling the templates -----------------------------------------------------------------------


@dataclass(frozen=True)
class Word:
    """One table entry: English, Spanish, gender (m, f), and what else its table has."""

    english: str
    spanish: str
    gender: str
    rest: tuple[str, ...] = ()


@dataclass(frozen=True)
class Adjective:
    """One adjective: English, and Spanish by gender."""

    english: str
    m: str
    f: str

    def spanish(self, gender: str) -> str:
        return self.m if gender == "m" else self.f


def _words(table: str) -> tuple[Word, ...]:
    """Entries "english spanish gender rest..."; an English or Spanish entry of several words ends at the gender."""
    words = []
    for entry in table.split("|"):
        parts = entry.split()
        at = next(i for i, p in enumerate(parts) if p in ("m", "f"))
        # "apple tree manzano m": the last English word is "tree"; "bean plant mata de judías m": "plant".
        cut = 2 if parts[1] in ("tree", "plant") else 1
        words.append(Word(" ".join(parts[:cut]), " ".join(parts[cut:at]), parts[at], tuple(parts[at + 1 :])))
    return tuple(words)


def _adjectives(table: str) -> tuple[Adjective, ...]:
    return tuple(Adjective(*entry.split()) for entry in table.split("|"))


_CHILDREN, _GROWN_UPS, _ANIMALS, _PLACES = (_words(t) for t in (CHILDREN, GROWN_UPS, ANIMALS, PLACES))
_THINGS, _FOODS, _PLANTS = (_words(t) for t in (THINGS, FOODS, PLANTS))
_LOOKS, _NATURES, _SAD, _GLAD = (_adjectives(t) for t in (ADJECTIVES, CHARACTERS, BAD_MOODS, GOOD_MOODS))
_PREPOSITIONS = {"in": "en", "at": "en", "on": "en", "by": "junto a"}


def story(seed: int, index: int) -> Pair:
    """(English, Spanish) text of story ``index``; depends on seed and index only."""
    rng = random.Random(f"{seed}:{index}")
    slots = PLOTS[rng.choice(tuple(PLOTS))]
    english, spanish = _cast(rng)
    sentences = [_fill(rng.choice(OPENING), english, spanish)]
    optional = rng.randrange(1, len(slots) - 1)
    for i, slot in enumerate(slots):
        if i != optional or rng.random() < 0.6:
            sentences.append(_fill(rng.choice(slot), english, spanish))
    if rng.random() < 0.8:
        sentences.append(_fill(rng.choice(ENDING), english, spanish))
    # Before another i sound the Spanish "and" is "e": Juan e Isabel.
    return " ".join(s[0] for s in sentences), " ".join(s[1] for s in sentences).replace(" y I", " e I")


def stories(num_stories: int, seed: int = 0) -> Iterator[Pair]:
    """The first ``num_stories`` stories of ``seed``."""
    return (story(seed, index) for index in range(num_stories))


def _fill(pair: Pair, english: dict[str, Any], spanish: dict[str, Any]) -> Pair:
    return _capitalised(pair[0].format(**english)), _capitalised(pair[1].format(**spanish))


def _capitalised(text: str) -> str:
    for i, letter in enumerate(text):
        if letter.isalpha():
            return text[:i] + letter.upper() + text[i + 1 :]
    return text


def _cast(rng: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the templates' fields stand for in one story, in English and in Spanish."""
    a, b = rng.sample(_CHILDREN, 2)
    p, q = rng.sample(_PLACES, 2)
    x, y = rng.sample(_THINGS, 2)
    look_x, look_y = rng.sample(_LOOKS, 2)
    pairs = {
        "a": _child(a, rng),
        "b": _child(b, rng),
        "both": _both(a.gender, b.gender),
        "g": _grown_up(rng.choice(_GROWN_UPS), a.gender),
        "n": _animal(rng.choice(_ANIMALS)),
        "p": _place(p),
        "q": _place(q),
        "x": _thing(x, look_x),
        "y": _thing(y, look_y),
        "f": _food(rng.choice(_FOODS)),
        "v": _noun(rng.choice(_PLANTS)),
        "number": rng.choice(NUMBERS),
        "skill": rng.choice(SKILLS),
        "time": rng.choice(TIMES),
        "weather": rng.choice(WEATHER),
        "contest": rng.choice(CONTESTS),
    }
    return {k: v[0] for k, v in pairs.items()}, {k: v[1] for k, v in pairs.items()}


def _child(word: Word, rng: random.Random) -> tuple[SimpleNamespace, SimpleNamespace]:
    male = word.gender == "m"
    nature, nature2 = rng.sample(_NATURES, 2)
    sad, glad = rng.choice(_SAD), rng.choice(_GLAD)
    english = SimpleNamespace(name=word.english, kid="boy" if male else "girl", **_pronouns(word.gender))
    english.poss, english.natured = f"{word.english}'s", _with_a(nature.english)
    spanish = SimpleNamespace(
        name=word.spanish,
        kid="niño" if male else "niña",
        one="un" if male else "una",
        One="Un" if male else "Una",
        the="el" if male else "la",
        it="lo" if male else "la",
        friend="amigo" if male else "amiga",
        new="nuevo" if male else "nueva",
        alone="solo" if male else "sola",
    )
    for key, adjective in (("nature", nature), ("nature2", nature2), ("sad", sad), ("glad", glad)):
        setattr(english, key, adjective.english)
        setattr(spanish, key, adjective.spanish(word.gender))
    return english, spanish


def _both(a: str, b: str) -> tuple[SimpleNamespace, SimpleNamespace]:
    """Spanish counts a group as masculine unless all are feminine."""
    two = "as" if a == b == "f" else "os"
    spanish = SimpleNamespace(together=f"junt{two}", friends=f"buen{two} amig{two}", the_two=f"l{two} dos")
    return SimpleNamespace(), spanish


def _pronouns(gender: str) -> dict[str, str]:
    he, him, his = ("he", "him", "his") if gender == "m" else ("she", "her", "her")
    return {"he": he, "him": him, "his": his, "He": he.title(), "His": his.title()}


def _grown_up(word: Word, child: str) -> tuple[SimpleNamespace, SimpleNamespace]:
    his = "his" if child == "m" else "her"
    english = SimpleNamespace(name=f"{his} {word.english}", Name=f"{his.title()} {word.english}", proud="proud")
    proud = "orgulloso" if word.gender == "m" else "orgullosa"
    return english, SimpleNamespace(name=f"su {word.spanish}", Name=f"Su {word.spanish}", proud=proud)


def _noun(word: Word) -> tuple[SimpleNamespace, SimpleNamespace]:
    male = word.gender == "m"
    the, one, it = ("el", "un", "lo") if male else ("la", "una", "la")
    name = word.spanish
    english = SimpleNamespace(noun=word.english, the=f"the {word.english}", a=_with_a(word.english))
    spanish = SimpleNamespace(
        noun=name,
        the=f"{the} {name}",
        a=f"{one} {name}",
        to_the=f"al {name}" if male else f"a la {name}",
        of_the=f"del {name}" if male else f"de la {name}",
        it=it,
        It=it.title(),
    )
    for words in (english, spanish):
        words.The, words.A = _capitalised(words.the), _capitalised(words.a)
    return english, spanish


def _animal(word: Word) -> tuple[SimpleNamespace, SimpleNamespace]:
    """Spanish puts ``a`` before an animal that something is done to: vieron a un zorro."""
    english, spanish = _noun(word)
    spanish.a_ = f"a {spanish.a}"
    spanish.Poor = "Pobrecito" if word.gender == "m" else "Pobrecita"
    return english, spanish


def _place(word: Word) -> tuple[SimpleNamespace, SimpleNamespace]:
    english, spanish = _noun(word)
    preposition = word.rest[0]
    english.at = f"{preposition} {english.the}"
    spanish.at = f"junto {spanish.to_the}" if preposition == "by" else f"en {spanish.the}"
    return english, spanish


def _thing(word: Word, look: Adjective) -> tuple[SimpleNamespace, SimpleNamespace]:
    """A thing and how it looks: ``the`` red ball, and ``the_noun`` without the look."""
    english, spanish = _noun(word)
    adjective = look.spanish(word.gender)
    for words in (english, spanish):
        words.the_noun, words.a_noun, words.The_noun = words.the, words.a, words.The
    english.the, english.a = f"the {look.english} {word.english}", _with_a(f"{look.english} {word.english}")
    spanish.the, spanish.a = f"{spanish.the} {adjective}", f"{spanish.a} {adjective}"
    male = word.gender == "m"
    spanish.the_same = f"{'el mismo' if male else 'la misma'} {word.spanish}"
    spanish.mine = "mío" if male else "mía"
    return english, spanish


def _food(word: Word) -> tuple[SimpleNamespace, SimpleNamespace]:
    english, spanish = _noun(word)
    english.many, spanish.many = word.rest
    return english, spanish


def _with_a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' or words.startswith('honest') else 'a'} {words}"
