"""A sentence in each of the scripts that the vocabulary has most of, written close: clauses are long words."""

SENTENCES = (
    "在这种情况下,参考资料与注释的时间复杂度是线性的。",
    "吾輩は猫である。名前はまだ無いが、カタカナも使うのだ!",
    "나는 고양이로소이다. 이름은 아직 없습니다.",
    "ฉันเป็นแมวตัวหนึ่งและยังไม่มีชื่อเลย",
    "मैं एक बिल्ली हूँ और मेरा अभी तक कोई नाम नहीं है",
    "আমি একটি বিড়াল এবং আমার কোনো নাম নেই",
    "Я кот, и у меня до сих пор нет имени; вот-вот будет.",
    "אני חתול, ועדיין אין לי שם",
    "أَنَا قِطَّةٌ وَلَيْسَ لِي اسْمٌ بَعْدُ",
    "I am a cat, as yet unnamed: it isn't pneumonoultramicroscopicsilicovolcanoconiosis.",
    "Tôi là một con mèo và vẫn chưa có tên; Größenwahn, naïveté, Łódź, İstanbul",
    "    def encodeTheWholeTextInOnePass(self):\r\n\t\treturn 12345.678  # ------------\n\n\n",
    "𠀀𠀁𪜶👩\u200d🚀🙂\ufeff\u3000\u2028\u00a0",
)
