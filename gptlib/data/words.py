"""The words of the stories: lists by name, commonest first. Nouns and adjectives that count carry their article.

No option of a list is the beginning of another (telling.Table asserts it), with or without its article.
"""

LISTS = {
    # people: no boy's name begins with He, no girl's with She, so that a pronoun is never the beginning of a name
    "GIRL": """Anna, Lily, Mia, Sara, Rose, Emma, Nora, Ruth, Ella, Ivy, Jane, Kate, Lucy, Maya, Nina, Olga, Tara, Vera,
        Zoe, Alice, Amy, Beth, Clara, Daisy, Ellen, Fiona, Grace, Hannah, Iris, Julia, Karen, Laura, Maria, Nancy,
        Olive, Pam, Rachel, Sophie, Tina, Ursula, Violet, Wendy, Yara, Adele, Bella, Cora, Diana, Eva, Frances, Gina,
        Helen, Ida, Jenny, Kira, Lena, Molly, Nadia, Opal, Penny, Rita, Susan, Tess, Una, Vicky, Winnie, Yuki, Agnes,
        Bonnie, Carmen, Dora, Edith, Flora, Gwen, Hazel, Inga, Judy, Leila, Mabel, Nell, Petra, Rosa, Sylvia, Thea,
        Wanda, April, Betty, Celia, Doris, Esther, Freya, Greta, Holly, Irene, Joan, Lola, Martha, Naomi, Priya, Sally,
        Tilda""",
    "BOY": """Tom, Ben, Max, Sam, Jack, Leo, Paul, Finn, Adam, Carl, David, Fred, Hugo, Ivan, Luke, Mark, Nick, Peter,
        Theo, Alan, Bill, Charlie, Daniel, Eric, Frank, George, Harry, Isaac, Jacob, Kevin, Louis, Martin, Noah, Oscar,
        Philip, Robert, Simon, Toby, Victor, Walter, Yusuf, Albert, Bruno, Colin, Dennis, Edgar, Felix, Gavin, Howard,
        Igor, James, Karl, Lars, Matthew, Nathan, Otto, Patrick, Ralph, Stephen, Ted, Umar, Vincent, Will, Zack, Andrew,
        Barry, Conrad, Duncan, Ethan, Floyd, Gilbert, Hassan, Ian, Jonas, Kurt, Lewis, Milo, Nigel, Owen, Quentin,
        Roger, Stuart, Tyler, Vernon, Wesley, Amos, Boris, Cyril, Derek, Elias, Francis, Gordon, Hans, Jasper, Kenji,
        Lionel, Morris, Norman, Russell, Rufus""",
    "PET": """Biscuit, Pepper, Shadow, Lucky, Coco, Snowball, Ginger, Buttons, Spot, Fluffy, Muffin, Patches, Rusty,
        Honey, Smokey, Tiger, Bandit, Pickles, Whiskers, Mittens, Nutmeg, Cookie, Dusty, Freckles, Bubbles, Captain,
        Domino, Feather, Hopper, Jelly, Marble, Noodle, Pebble, Scout, Socks, Thunder, Waffles, Ziggy, Acorn, Clover""",
    "KIN": "mother, father, grandmother, grandfather, aunt, uncle, teacher, godmother, stepfather, nurse",
    "JOB": """baker, farmer, miller, fisherman, sailor, tailor, shoemaker, gardener, doctor, blacksmith, carpenter,
        shepherd, butcher, painter, hunter, postman, librarian, mayor, king, queen, soldier, captain, cook, driver,
        policeman, fireman, singer, dancer, musician, potter, weaver, barber, beekeeper, woodcutter, grocer, waiter,
        conductor, pilot, dentist, judge, merchant, poet, printer, plumber, ranger, sculptor, watchmaker, juggler,
        magician, clown, knight, prince, wizard, monk, nun, pirate, toymaker, florist, milkman, ferryman, lighthouse
        keeper, goldsmith, locksmith, mason, roofer, glazier, bookbinder, hatter, innkeeper, gatekeeper, stranger,
        traveler, old woman, old man, little boy, schoolmaster, chimney sweep, cheesemaker, basket maker, bell ringer,
        candle maker, coachman, cobbler, detective, explorer, inventor, jeweler, organist, puppeteer, reporter,
        scientist, umbrella seller, violinist, washerwoman, zookeeper, acrobat, actor, architect, astronomer, banker,
        beggar, blind man, bricklayer, bus driver, cartoonist, chemist, duchess, engineer, fiddler, fortune teller,
        geologist, guard, hermit, historian, janitor, lawyer, lumberjack, matchmaker, mountaineer, novelist, peddler,
        photographer, rabbi, referee, sheriff, surgeon, trapper, veterinarian""",
    # time and weather
    "WEATHER": """sunny, cold, warm, windy, wet, hot, rainy, snowy, cloudy, foggy, gray, bright, stormy, misty, frosty,
        mild, gloomy, chilly, quiet, dark, breezy, clear, golden, dusty, long, fine, lazy, busy, strange, perfect""",
    "TIME": """day, morning, evening, afternoon, Sunday, Monday, Friday, Saturday, Tuesday, Wednesday, Thursday, school
        day, washing day, festival day, holiday, weekend, market day, birthday""",
    "HOUR": "three, four, five, six, two, seven, one, ten, eleven, nine, eight, twelve",
    # where
    "SCENE": """at home, in the garden, in the park, by the river, at school, in the kitchen, on the farm, by the lake,
        in the yard, at the beach, in the barn, on the hill, under a tree, near the old wall, in the attic, in a boat,
        at the window, in the woods, by the fire, on the porch, on the stairs, in the workshop, at the market, in a
        tent, by the sea, in the cellar, under the bridge, on the balcony, at the station, in the hallway, near the
        fountain, in the hay, on the bus, at the playground, in the snow, on the roof terrace, in a treehouse, at the
        harbor, among the tall reeds, in the greenhouse, beside the railway, in the courtyard, on the sand, at the
        museum, in the meadow, behind the church, in the cornfield, on the ferry, at the zoo, near the windmill""",
    "STOP": """mill, bridge, forest, market, farm, well, station, tower, castle, library, harbor, bakery, meadow,
        museum, village, orchard, cave, island, school, church, lake, river, hill, beach, shop, park, barn, inn, pond,
        theater, hospital, post office, lighthouse, fountain, crossroads, town hall, playground, waterfall, garden, dam,
        quarry, stable, swamp, temple, valley, vineyard, windmill, zoo, airport, bank, butcher shop, camp, cathedral,
        cliff, circus, creek, desert, factory, ferry, field, fort, gallery, gate, grocery, gymnasium, hotel, jetty,
        laundry, lagoon, mine, monastery, mountain, nursery, observatory, palace, pier, pharmacy, pottery, ranch,
        restaurant, ruins, sawmill, shipyard, shore, spring, square, stadium, statue, studio, swimming pool, tavern, toy
        store, tunnel, university, volcano, warehouse, wharf, woods, workshop, abbey, academy, amphitheater, aquarium,
        boathouse, brewery, cabin, chapel, clinic, convent, courthouse, dairy, dock, fairground, fire station,
        greenhouse, hut, junkyard, kennel, lodge, mansion, maze, parade, parsonage, planetarium, prairie, ravine,
        reservoir, ropewalk, shrine, summit, synagogue, telegraph office, tollgate, trading post, wilderness""",
    "SPOT": """under the bed, in the box, behind the door, on the shelf, under the table, in the drawer, behind the
        sofa, in the bag, under the rug, on the chair, in the closet, behind the curtain, beside the stove, in the
        bucket, inside the piano, under the stairs, near the window, on the roof, between two pillows, in the cupboard,
        under the blanket, on the mantel, in the basket, behind the clock, in the wardrobe, under a loose board, in the
        oven, on the windowsill, behind the mirror, in the chest, under the doormat, in the barrel, inside the hollow
        tree, behind the barn, in the mailbox, under the cushion, on the ladder, in the pantry, beside the pump, beneath
        the bench, in the flowerpot, inside a boot, behind the bookcase, in the laundry, on the wagon, under the sink,
        in the attic, beneath the ferns, among the potatoes, in the suitcase, inside the lantern, behind the haystack,
        on the gatepost, in the sewing kit, under the wheelbarrow, near the chimney, in the teapot, inside the
        birdhouse, behind the painting, in the toolbox""",
    "NEARBY": """near the gate, in the grass, by the fence, on the road, in the mud, by the pond, in the sun, behind the
        house, on a branch, next to the cart, under the bench, across the street, in the ditch, along the path, on the
        ice, by the hedge, in the shade, on a stump, below the bridge, between the rocks, among the roses, on the
        doorstep, in a puddle, beside the tracks, around the corner, at the crossing, in the nettles, on the lawn, near
        the pump, outside the shop""",
    "HOME": """in a small house, on a farm, in a village, by the sea, in a tall tower, near the forest, in the city, on
        a hill, above the bakery, in an old mill, beside a railway, at the edge of town, on a houseboat, in a cottage,
        behind the school, under a red roof, in the mountains, over the bookshop, on an island, in a castle, across the
        river, in a narrow street, between two gardens, along the canal, at the foot of a cliff""",
    # things
    "THING": """a ball, a hat, a cup, a kite, a book, a drum, a key, a doll, a ring, a bell, a coat, a lamp, an
        umbrella, a mug, a rope, a shovel, a toy car, a whistle, a basket, a blanket, a clock, a crown, a flute, a
        globe, a hammer, a jar, a kettle, a mirror, a necklace, a pencil, a ribbon, a scarf, a spoon, a ticket, an
        apron, a backpack, a bottle, a brush, a bucket, a button, a candle, a chain, a comb, a compass, a diary, a fan,
        a feather, a flag, a flashlight, a fork, a glove, a guitar, a harp, a helmet, a horn, a jacket, a jewel, a jump
        rope, a knife, a knot, a ladder, a lantern, a lock, a magnet, a map, a marble, a mask, a medal, a mitten, a
        music box, a needle, a net, a notebook, an oar, an ornament, a paddle, a painting, a pan, a pillow, a pipe, a
        pitcher, a plate, a pocket watch, a postcard, a pot, a purse, a puppet, a puzzle, a quilt, a radio, a rake, a
        rattle, a robot, a ruler, a saddle, a sack, a sail, a sandal, a saw, a shell, a shield, a shirt, a shoe, a
        skate, a skirt, a sled, a slipper, a soap dish, a sock, a spade, a sponge, a stamp, a stick, a stool, a
        suitcase, a swing, a sword, a teapot, a teddy bear, a telescope, a thimble, a toothbrush, a top, a towel, a toy
        boat, a toy train, a tray, a trumpet, a tunic, a vase, a vest, a violin, a wagon, a wallet, a watering can, a
        wheel, a whip, a wig, a wreath, a yo-yo, an accordion, an album, an anchor, an arrow, an axe, a badge, a bag, a
        banjo, a banner, a barrel, a belt, a bench, a bicycle, a binder, a birdcage, a boomerang, a boot, a bow tie, a
        bowl, a bracelet, a brooch, a calendar, a camera, a cap, a carpet, a chalkboard, a chest, a chessboard, a
        chisel, a clarinet, a cloak, a costume, a cradle, a crayon, a cushion, a dictionary, a dish, a domino, an
        earring, an easel, an envelope, an eraser, a figurine, a fishing rod, a flowerpot, a funnel, a glass, a goblet,
        a gong, a hairpin, a handkerchief, a harmonica, a hoop, an hourglass, an ink bottle, an iron, a jigsaw, a jug, a
        ladle, a lens, a pendant, a magazine, a mandolin, a mat, a microscope, a mop, a napkin, a newspaper, an opal, a
        package, a padlock, a parachute, a parasol, a pedal, a pebble, a pinwheel, a plow, a poncho, a poster, a pulley,
        a rocking horse, a rocket, a rug, a scale, a scepter, a scooter, a screwdriver, a seashell, a shawl, a sieve, a
        snow globe, a spinning wheel, a spyglass, a statue, a sundial, a surfboard, a sweater, a tambourine, a tent, a
        thermometer, a tiara, a toolbox, a typewriter, a ukulele, a veil, a walking cane, a wand, a windmill, a
        xylophone, a bathrobe, a beanbag, a blouse, a bonnet, a bugle, a cabinet, a canoe, a cello, a chimney brush, a
        coin purse, a collar, a curtain, a dress, a dustpan, a fiddle, a fishbowl, a frying pan, a garland, a gown, a
        hammock, a headband, a hinge, a kimono, a lute, a megaphone, a milk can, a mousetrap, a nutcracker, a parcel, a
        peg, a periscope, a piccolo, a pocketknife, a raft, a raincoat, a sewing box, a sleeping bag, a stethoscope, a
        stopwatch, a tablecloth, a tassel, a trombone, a tuba, a turban, a unicycle, a walking stick, a weather vane, a
        whisk, a wristwatch, a zipper""",
    "COLOR": """a red, a blue, a green, a white, a black, a yellow, a brown, a pink, a purple, a golden, a silver, a
        tiny, a heavy, a striped, an old, a new, a shiny, a big, a little, an orange, a broken, a wooden, a soft, a
        round, a painted, a pretty, a dirty, a long, a rusty, a plain, a crooked, a smooth, a square, a bright, a clean,
        a cheap, an ugly, a funny, a fancy, a thin, a thick, a spotted, a gray, an ivory, a copper, a brass, a leather,
        a paper, a plastic, a crystal, a marble, a velvet, a cotton, a magic, a lovely, a dusty, a damp, a dented, a
        faded, a fine, a flat, a foreign, a fragile, a frayed, a giant, a glowing, a handmade, a hollow, a huge, an
        iron, a jeweled, a knitted, a light, a lucky, a modern, a narrow, a noisy, an odd, an oval, a patched, a pale, a
        pointed, a polished, a precious, a quaint, a rare, a rough, a royal, a scarlet, a scratched, a secret, a sharp,
        a simple, a slender, a small, a sparkling, a speckled, a sticky, a strong, a sturdy, a tall, a torn, a
        turquoise, a twisted, an unusual, a violet, a wide, a wonderful, a woolen, a worn, an enormous, an elegant, an
        amber, a bent, a bronze, a checkered, a curved, a delicate, a beige, a bulky, a burnt, a carved, a cracked, a
        crimson, a decorated, a feathered, a floppy, a fuzzy, a glittering, a greasy, a hairy, a heart-shaped, a lacy, a
        mended, a muddy, a musical, a mysterious, a navy, an oily, an ordinary, a pearl, a ragged, a rubber, a ruined, a
        silky, a slippery, a soggy, a stained, a starry, a tangled, a transparent, a varnished, a wobbly, a wrinkled""",
    "HEAP": """shells, stones, apples, coins, buttons, leaves, marbles, nuts, pears, beads, berries, cards, cherries,
        eggs, flowers, lemons, nails, plums, stamps, acorns, balloons, bottles, boxes, bricks, candles, carrots, chairs,
        cookies, cups, feathers, figs, hats, jars, kites, lamps, lanterns, letters, melons, mushrooms, onions, oranges,
        peaches, pebbles, pencils, pennies, pinecones, plates, potatoes, pumpkins, ribbons, rings, roses, sacks, seeds,
        socks, spoons, stars, sticks, tickets, tulips, turnips, walnuts, almonds, badges, baskets, biscuits, blocks,
        books, bulbs, chestnuts, chips, corks, crackers, daisies, dolls, flags, gloves, grapes, keys, knots, ladles,
        lilies, lollipops, pancakes, pearls, pies, puzzles, ropes, rocks, scarves, screws, shoes, tiles, tomatoes,
        tools, turtles, wheels, whistles, buckets, butterflies, anchors, arrows, bananas, bells, blankets, bottle caps,
        bracelets, cakes, cans, cherry stones, combs, crayons, crowns, dominoes, doughnuts, drums, envelopes, fans, fish
        hooks, forks, goldfish, hammers, helmets, horseshoes, jewels, lemon drops, maps, medals, muffins, needles,
        olives, paintbrushes, parcels, pillows, postcards, radishes, seashells, snails, straws, tadpoles, teacups,
        umbrellas, violets, wagons""",
    "FOOD": """bread, milk, eggs, apples, cheese, rice, butter, honey, soup, fish, corn, sugar, salt, tea, carrots,
        onions, peas, beans, jam, grapes, pepper, flour, cake, meat, water, oil, nuts, plums, pears, lemons, oranges,
        potatoes, tomatoes, cherries, cream, chocolate, cinnamon, garlic, ham, juice, cabbage, cocoa, coffee, cookies,
        noodles, raisins, sausages, spinach, strawberries, vinegar, yeast, yogurt, bacon, bananas, barley, beets,
        biscuits, blueberries, broccoli, candy, celery, chestnuts, chicken, coconut, crackers, cucumbers, dates, figs,
        ginger, gravy, jelly, kale, leeks, lentils, lettuce, mangoes, marmalade, melons, mint, muffins, mushrooms,
        mustard, oats, olives, pancakes, parsley, pasta, peaches, peanuts, pickles, pineapple, popcorn, pumpkin,
        radishes, raspberries, sardines, seaweed, shrimp, syrup, thyme, tofu, turkey, turnips, vanilla, waffles,
        walnuts, wheat, zucchini, almonds, apricots, porridge, custard, dumplings, toast, artichokes, asparagus,
        avocados, buns, caramel, cauliflower, cereal, clams, cranberries, doughnuts, eggplant, fudge, gooseberries,
        granola, hazelnuts, lobster, macaroni, molasses, nutmeg, omelets, oysters, papaya, pastries, pomegranates,
        pretzels, prunes, quinces, rhubarb, rosemary, saffron, salmon, sauerkraut, sesame, spaghetti, squash, tuna,
        venison""",
    "DISH": """a cake, a soup, a pie, a salad, a stew, a feast, a picnic, a sandwich, a pudding, a breakfast, a dinner,
        a party, an omelet, a pizza, a roast, a sauce, a birthday lunch, a tart, a casserole, a curry, a wedding, a
        fruit bowl, an early supper, a school fair, a trip""",
    "SECRET": """moon, lion, river, candle, tiger, winter, garlic, rocket, pumpkin, thunder, velvet, cactus, dragon,
        engine, lantern, mountain, ocean, parrot, rainbow, oven, apple, bridge, castle, diamond, eagle, forest, giant,
        hammer, island, jungle, kitten, lemon, mirror, needle, orange, pirate, queen, ribbon, silver, tulip, umbrella,
        violin, window, yellow, zebra, autumn, bamboo, cricket, dolphin, emerald, falcon, glacier, harvest, igloo,
        jasmine, kangaroo, lightning, magnet, nightingale, orchid, penguin, quartz, ruby, sapphire, telescope, unicorn,
        volcano, whale, xylophone, yesterday, amber, butterfly, comet, desert, echo, feather, granite, horizon, ivory,
        jigsaw, lagoon, meadow, north, octopus, pyramid, riddle, sunflower, tornado, valley, walnut, acrobat, blizzard,
        canyon, daffodil, elephant, flamingo, galaxy, hurricane, iceberg, labyrinth, mermaid, nutshell, oasis, peacock,
        raven, scarecrow, treasure, waterfall, bumblebee, carnival, avalanche, bicycle, cinnamon, compass, crocodile,
        cucumber, firefly, gingerbread, goldfish, honeycomb, hopscotch, hummingbird, icicle, ladybug, marmalade,
        midnight, mustache, pancake, peppermint, popcorn, sandcastle, saxophone, shipwreck, snowflake, spaghetti,
        starfish, strawberry, thimble, toadstool, trampoline, twilight, whirlpool, windmill, wristwatch""",
    # animals
    "ANIMAL": """a dog, a cat, a bird, a cow, a horse, a fox, a duck, a goat, a hen, a mouse, a pig, a rabbit, a sheep,
        a frog, a squirrel, a bee, a raven, a donkey, a goose, a lamb, an owl, a bear, a crow, a deer, a swan, a turtle,
        a wolf, a monkey, a lizard, a snail, a rat, a pony, a robin, a spider, a snake, a butterfly, a badger, a beaver,
        a camel, a chick, a crab, a cricket, a dragonfly, an eagle, an elephant, a falcon, a firefly, a gull, a hamster,
        a hawk, a hedgehog, a heron, an ibis, a kitten, a lark, a leopard, a llama, a magpie, a mole, a moose, a moth, a
        mule, a newt, an otter, an ox, a panda, a parrot, a peacock, a pelican, a penguin, a porcupine, a puppy, a
        quail, a raccoon, a rooster, a salamander, a seal, a skunk, a sparrow, a starling, a stork, a swallow, a toad, a
        trout, a turkey, a walrus, a weasel, a woodpecker, a wren, a yak, a zebra, an ant, an ape, a bat, a bull, a
        calf, a canary, a cockatoo, a crane, a cuckoo, a finch, a gecko, a giraffe, a grasshopper, a jackdaw, a
        kangaroo, a koala, a ladybug, a lynx, a marmot, a mallard, a mantis, a meerkat, a mongoose, a nightingale, an
        octopus, an opossum, an ostrich, a partridge, a pheasant, a platypus, a polar bear, a puffin, a reindeer, a
        rhinoceros, a sandpiper, a seahorse, a sloth, a snowy owl, a stoat, a tiger, a tortoise, a vole, a vulture, a
        warbler, a wasp, a wombat""",
    "PETS": """a dog, a cat, a goat, a rabbit, a pony, a duck, a parrot, a donkey, a lamb, a hamster, a goose, a
        tortoise, a pig, a kitten, a raven, a canary, a ferret, a monkey, a mule, a puppy, a hedgehog, a squirrel""",
    "DEED": """slept, ran, sat, jumped, played, hid, cried, waited, danced, drank, rolled, sneezed, looked for food,
        chased a fly, barked, hopped, sang, climbed, crawled, yawned, dug a hole, blinked, stretched, ate, watched,
        listened, licked its foot, scratched its ear, shook itself, sniffed, splashed, stared, trembled, wandered about,
        whined, limped, growled, grunted, hummed, nibbled a leaf, paced, panted, peeped out, pranced, rested, scurried,
        skipped, snored, stamped, swam, trotted, turned around, wriggled, coughed, crept, dozed, dreamed, hissed,
        howled, squeaked""",
    # what people do and feel
    "ERRAND": """went to sleep, went to feed the cat, went to buy bread, ran out to play, left to get water, went to
        call a friend, left to wash the dishes, went to pick flowers, ran off to help the farmer, went to sing, ran out
        to see the horses, went to swim, left to mail a letter, sat down to read, went to chop wood, went to catch fish,
        climbed a tree, ran home to eat, left to visit a neighbor, went to milk the cow, swept the floor, went to skate,
        baked a loaf, hurried to school, painted the fence, rode a bicycle, went to gather mushrooms, stopped to rest,
        fed the chickens, took a bath, went to paint, built a sandcastle, practiced the piano, went upstairs, knitted a
        sock, polished the silver, ironed some shirts, weeded the garden, drew a picture, folded the laundry, repaired a
        wheel, studied the map, counted the stars, walked around the block, combed the horse, carried in the firewood,
        sharpened an axe, planted a tree, flew a kite, listened to the radio""",
    "PROMISE": """feed the goat, water the roses, mend the fence, wash the dishes, sweep the floor, bring the wood, bake
        the bread, lock the gate, clean the stable, light the lamp, pick the apples, post the letter, paint the door,
        milk the cow, walk the dog, fix the bicycle, close the windows, fetch the doctor, dry the towels, set the table,
        peel the potatoes, polish the boots, ring the bell, sew the curtain, shut the barn, tidy the attic, wake the
        baker, wind the clock, cut the grass, carry the chairs, hang the pictures, iron the shirts, knead the dough,
        load the wagon, rake the leaves, read the poem, return the books, scrub the pots, shovel the snow, sort the
        buttons, stir the soup, tie the boat, catch the hen, dust the shelves, empty the bucket, fold the sheets, weigh
        the flour, trim the hedge, tune the piano, unpack the boxes""",
    "HOBBY": """singing, drawing, fishing, reading, dancing, swimming, cooking, running, climbing trees, painting,
        riding horses, building towers, telling jokes, gardening, skating, baking, sailing, knitting, looking at clouds,
        collecting stamps, counting stars, solving riddles, whistling, juggling, playing chess, writing poems, flying
        kites, digging for gold, watching birds, catching frogs, carving wood, exploring caves, feeding ducks, learning
        languages, making puppets, walking in the rain, playing the drums, planting seeds, inventing machines, jumping
        over puddles""",
    "FEELING": """happy, sad, glad, tired, proud, hungry, angry, calm, afraid, excited, lonely, surprised, sleepy,
        grateful, jealous, nervous, thirsty, worried, bored, brave, cheerful, cold, confused, curious, dizzy, eager,
        foolish, free, guilty, homesick, hopeful, hurt, impatient, lazy, lucky, merry, miserable, peaceful, pleased,
        puzzled, relieved, restless, safe, scared, shy, sick, silly, sorry, strong, thankful, uneasy, upset, weak,
        weary, wonderful, ashamed, comfortable, delighted, disappointed, gloomy, important, joyful, adventurous, amazed,
        annoyed, bewildered, bold, content, cozy, cross, desperate, determined, embarrassed, enchanted, enthusiastic,
        fearless, frightened, frustrated, furious, hopeless, horrified, inspired, lost, lovesick, mellow, optimistic,
        overjoyed, patient, playful, refreshed, satisfied, serene, shaken, soaked, starved, stunned, suspicious,
        thrilled, tickled, triumphant, troubled, unhappy, warm""",
    "SKY": """wind was cold, sun was low, church bell rang, grass was wet, clouds were gray, moon came out, birds were
        singing, road was empty, shops were closed, river was high, first star was out, air smelled of smoke, rain began
        to fall, fog grew thick, leaves were turning brown, trees were bare, goats were bleating, crickets were
        chirping, streets were crowded, flowers were open, sky turned pink, stars were shining, sea was rough, tide was
        coming in, lamps were lit, days were getting shorter, wheat was ripe, pots were boiling, thunder rolled far
        away, dust rose behind the wagons, kitchen smelled of cinnamon, roof was dripping, train was late, children were
        laughing, band was playing, bees were busy, shadows grew long, water was still, gate was creaking, whole town
        was asleep""",
    "ACT": """smiled, laughed, nodded, clapped, sighed, bowed, waved, shouted, whistled, cheered, blushed, cried,
        danced, frowned, giggled, grinned, jumped for joy, shrugged, winked, gasped""",
    "ASKED": "asked, called, cried, whispered, shouted, begged, wondered, demanded, sang out, murmured",
    "ADVERB": """quickly, slowly, quietly, carefully, happily, suddenly, gently, proudly, bravely, softly, eagerly,
        secretly, politely, calmly, gladly, nervously, patiently, silently, cheerfully, kindly, boldly, clumsily,
        loudly, neatly, sadly, sleepily, swiftly, warmly, wisely, anxiously, angrily, awkwardly, breathlessly,
        cautiously, curiously, desperately, excitedly, fearfully, frantically, gracefully, helplessly, hopefully,
        impatiently, joyfully, merrily, playfully, powerfully, seriously, shyly, tenderly""",
    "TRAIT": """a kind, a clever, a little, a brave, a lazy, a quiet, a curious, a funny, a shy, a cheerful, a stubborn,
        an honest, a polite, a careless, a patient, a wild, a proud, a gentle, a hungry, a poor, a rich, an odd, a busy,
        a bold, a wise, a greedy, a grumpy, a dreamy, a nosy, a helpful, an active, a bossy, a cautious, a charming, a
        daring, a friendly, a generous, a humble, an impatient, a jolly, a loyal, a mischievous, a moody, a noisy, an
        obedient, a playful, a sensible, a serious, a sly, a spoiled, a talkative, a tidy, a thoughtful, a witty, an
        absent-minded, an ambitious, an artistic, an athletic, a boastful, a chatty, a clumsy, a considerate, a
        courageous, a courteous, a faithful, a fearful, a fierce, a forgetful, a frank, a gloomy, a graceful, a
        hardworking, a hasty, a headstrong, an imaginative, an intelligent, a lively, a messy, a modest, a musical, an
        observant, a plucky, a popular, a punctual, a reckless, a resourceful, a restless, a rude, a silent, a sleepy, a
        studious, a tender, a timid, a vain""",
    "PLANT": """a rose, an apple tree, a bean, a tulip, a sunflower, an oak, a lemon tree, a vine, a daisy, a pine, a
        cherry tree, a lily, a thistle, a fern, a cactus, a fig tree, a daffodil, a willow, an elm, a birch, a maple, an
        olive tree, a poppy, a pansy, an orchid, a shrub, a palm, a beech, a chestnut, a carnation, a geranium, a
        hyacinth, a mulberry bush, a peony, a primrose, a spruce, a cedar, a bluebell, a crocus, a dandelion, a
        buttercup, a camellia, a cornflower, a eucalyptus, a foxglove, a gooseberry bush, a honeysuckle, an iris, a
        juniper, a lavender, a lilac, a magnolia, a marigold, a nettle, a petunia, a raspberry bush, a snowdrop, a
        sycamore, a walnut tree, a yew""",
    "NOISE": """a song, a bang, a whistle, a cry, a splash, a bell, an echo, a crash, a drum, a laugh, a knock, a
        scream, a click, a growl, a hum, a roar, a rustle, a sneeze, a snore, a thud, a trumpet, a creak, a crack, a
        buzz, a chirp, a clang, a gurgle, a howl, a jingle, a melody, a rattle, a rumble, a sigh, a squeak, a tune, an
        explosion, an owl, a violin, a waltz, a yell""",
    "GAME": """chess, tag, hide-and-seek, cards, football, checkers, dominoes, hopscotch, marbles, tennis, leapfrog,
        baseball, bowling, darts, golf, handball, hockey, kickball, croquet, ping-pong, rugby, soccer, volleyball,
        cricket, badminton, basketball, blindman's buff, charades, musical chairs, tug-of-war""",
    "NUMBER": """zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen, fourteen,
        fifteen, sixteen, seventeen, eighteen, nineteen, twenty, twenty-one, twenty-two, twenty-three""",
}
