from hybridizer.core.errors import InputError, Problem, printable


def test_what_a_terminal_would_act_on_is_written_out():
    error = InputError(Problem("donor\x1b]0;title\x07", "holds '\x1b[31mred\u202e' here.", "Remove\nit."))
    assert "\x1b" not in str(error) and "\u202e" not in str(error)
    assert r"\x1b[31mred" in str(error) and "Remove\nit." in str(error)


def test_ordinary_text_stays_as_it_is():
    assert printable("Größe 三, 'a b'\n") == "Größe 三, 'a b'\n"
