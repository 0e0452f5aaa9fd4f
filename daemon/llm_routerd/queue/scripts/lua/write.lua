-- Write several events of one request, in order; those that stand there already are passed over.
-- Keys: events.
-- Arguments: publishes (PUBLISH as well); words, {ID, type, data...}.
-- Returns what XADD returned for the last one, a refusal of its ID included.
-- Out of memory it writes nothing: memory is checked before a script's first write, and not again.  So no event of
-- one request is ever refused while a later one is written, as may happen to commands that merely follow each other.
-- May be repeated after a lost reply: IDs that stand there are refused, and nothing is PUBLISHed twice.
return write_events(events, words, publishes)
